"""The group of the processes: one that serves GPU tensors wherever there are GPUs, and one model of GPU."""

import textwrap

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from igpt_model.errors import UserError
from igpt_model.process_group import Ranks, current_ranks, join_group
from tests.ranks import run_ranks


def test_a_group_opened_without_nccl_is_refused_for_a_gpu(tmp_path):
    dist.init_process_group("cpu:gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="has only backend cpu:gloo, but the device is cuda:0"):
            join_group(torch.device("cuda:0"))
    finally:
        dist.destroy_process_group()


@given(count=st.integers(0, 200), size=st.integers(1, 17))
def test_shares_are_disjoint_complete_and_even(count, size):
    shares = [range(count)[Ranks(rank, size).part(0, count)] for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_rank_is_torchruns_or_the_only_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current_ranks() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert current_ranks() == Ranks(2, 3)


def test_a_rank_beyond_the_others_is_refused():
    with pytest.raises(ValueError, match="rank is 3; give 0 to 2"):
        Ranks(3, 3)


def test_two_processes_wait_and_then_share_the_rows_of_a_path_in_one_group():
    """A barrier first, as extraction leaves one behind; then a path whose rows are shared."""
    code = """
    import os
    rank = int(os.environ["RANK"])
    import numpy as np, torch, torch.distributed as dist
    torch.set_num_threads(1)
    from probekit.probes import fit_path
    from igpt_model.process_group import current_ranks, join_group
    current_ranks().wait()
    group = id(dist.group.WORLD)  # no reference: a group that outlives its end may abort the process at exit
    join_group(torch.device("cpu"))
    assert id(dist.group.WORLD) == group
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    path = fit_path(X[rank::2], y[rank::2], [0.1, 1.0], rows_dealt=True)
    gathered = [None, None]
    dist.all_gather_object(gathered, path.coef)
    assert np.array_equal(*gathered)
    alone = fit_path(X, y, [0.1, 1.0])
    assert np.abs(alone.predict_proba(X) - path.predict_proba(X)).max() < 1e-2
    print("done")
    """
    for said in run_ranks(["-c", textwrap.dedent(code)]):
        assert said.strip().endswith("done")


GPU_RANK = """
import os, sys
from unittest import mock
rank = int(os.environ["RANK"])
import torch, torch.distributed as dist
torch.set_num_threads(1)
from tests.fake_cuda import fake_cuda
from igpt_model.errors import UserError
from igpt_model.devices import find_device
from igpt_model.process_group import current_ranks, join_group

opened, names = [], ["FAKE", "FAKE"]
real = dist.init_process_group

def open_group(backend, device_id=None):
    opened.append((backend, device_id))
    real("gloo")  # there is no NCCL here

with fake_cuda(devices=2, model=lambda: names[rank]) as counts, \\
        mock.patch.object(dist, "is_nccl_available", lambda: True), \\
        mock.patch.object(dist, "init_process_group", open_group), \\
        mock.patch.object(dist, "get_backend_config", lambda: opened[-1][0]):
    first = sys.argv[1]
    if first == "barrier":
        current_ranks().wait()
    else:
        join_group(find_device("cuda"))
        assert opened[0][1] == torch.device("cuda", rank)
    join_group(find_device("cuda"))
    assert [backend for backend, _ in opened] == ["cpu:gloo,cuda:nccl"], opened
    assert set(counts.chosen) == {f"cuda:{rank}"}, counts.chosen
    assert find_device("cuda") == torch.device("cuda", rank)
    names[1] = "OTHER"
    try:
        join_group(find_device("cuda"))
    except UserError as error:
        print("refused:", error)
    total = torch.ones(1)
    dist.all_reduce(total)  # the group is whole after the refusal
    assert total == 2
print("done")
"""


@pytest.mark.parametrize("first", ["barrier", "group"])
def test_two_processes_take_a_gpu_each_in_one_group_that_reduces_its_tensors(first):
    for said in run_ranks(["-c", GPU_RANK, first]):
        assert "refused: The processes have GPUs of different models (FAKE, OTHER)" in said
        assert said.strip().endswith("done")
