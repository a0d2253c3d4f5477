"""The group of the processes: one that serves GPU tensors wherever there are GPUs, and one model of GPU."""

import textwrap

import pytest
import torch
import torch.distributed as dist

from igpt_model.errors import UserError
from igpt_model.process_group import join_group, require_one_model
from tests.ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture
def opened(monkeypatch):
    """What the group is opened with, no group being opened."""
    asked = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, device_id=None: asked.append((backend, device_id)))
    monkeypatch.setattr("atexit.register", lambda function: None)
    return asked


def test_where_there_are_gpus_the_group_can_reduce_their_tensors_whatever_the_first_call_was_about(monkeypatch, opened):
    join_group(CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    join_group(CPU)
    assert opened == [("gloo", None), ("cpu:gloo,cuda:nccl", None)]


def test_the_group_is_bound_to_the_gpu_and_of_one_model(monkeypatch, opened):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100" if device.index == 0 else "A100")
    found = {}

    def gather(models, mine):
        models[:] = [found.setdefault("other", mine), mine]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    join_group(torch.device("cuda:0"))
    assert opened == [("cpu:gloo,cuda:nccl", torch.device("cuda:0"))]
    with pytest.raises(UserError, match=r"different models \(A100, H100\)"):
        join_group(torch.device("cuda:1"))


def test_a_group_opened_without_nccl_is_refused_for_a_gpu(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo")
    with pytest.raises(UserError, match="reduces tensors by cpu:gloo only, but the device is cuda:0"):
        join_group(torch.device("cuda:0"))


def test_equal_models_pass():
    require_one_model(["H100", "H100"])


def test_two_processes_wait_and_then_share_the_rows_of_a_path_in_one_group():
    """A barrier first, as extraction leaves one behind; then a path whose rows are shared; then mixed models."""
    code = """
    import os
    rank = int(os.environ["RANK"])
    import numpy as np, torch, torch.distributed as dist
    torch.set_num_threads(1)
    from probekit.probes import fit_path
    from probekit.runtime.ranks import barrier, current, start_group
    from igpt_model.errors import UserError
    from igpt_model.process_group import require_one_model
    barrier(current())
    group = dist.group.WORLD
    start_group("cpu")
    assert dist.group.WORLD is group
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    path = fit_path(X[rank::2], y[rank::2], [0.1, 1.0], rows_dealt=True)
    models = [None, None]
    dist.all_gather_object(models, f"GPU {rank}")
    try:
        require_one_model(models)
    except UserError as error:
        print("refused:", error)
    gathered = [None, None]
    dist.all_gather_object(gathered, path.coef)
    assert np.array_equal(*gathered)
    alone = fit_path(X, y, [0.1, 1.0])
    assert np.abs(alone.predict_proba(X) - path.predict_proba(X)).max() < 1e-2
    print("done")
    """
    for said in run_ranks(["-c", textwrap.dedent(code)]):
        assert "refused: The processes have GPUs of different models (GPU 0, GPU 1)" in said
        assert said.strip().endswith("done")
