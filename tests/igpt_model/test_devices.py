"""A device that is not there is refused in one sentence, wherever a user may name one; ranks take a GPU each."""

import numpy as np
import pytest
import torch

from igpt_model.devices import find_device
from probekit.probes import LinearProbe, fit_path
from probekit.probes.attentive import fit_attentive
from probekit.probes.sgd import SGDConfig, train_sgd
from probekit.runtime.errors import UserError, first_line
from tests.fake_cuda import fake_cuda

X, Y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 2


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
@pytest.mark.parametrize(
    "fit",
    [
        lambda device: fit_path(X, Y, [1.0], device=device),
        lambda device: LinearProbe(device=device).fit(X, Y),
        lambda device: fit_attentive(X[:, None], Y, n_heads=1, device=device),
        lambda device: train_sgd([], 4, 2, 1, SGDConfig(), device=device),
    ],
    ids=["path", "estimator", "attentive", "sgd"],
)
def test_an_absent_device_is_refused(fit, device):
    with pytest.raises(UserError, match=rf"The device {device} cannot be used .*; choose cpu") as refused:
        fit(device)
    assert "\n" not in str(refused.value)


def test_each_rank_takes_its_own_gpu(monkeypatch):
    with fake_cuda(devices=4) as counts:
        assert find_device("cuda") == torch.device("cuda")
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert find_device("cuda") == torch.device("cuda:3")
        assert find_device("cuda:1") == torch.device("cuda:1")  # one that is named is used
        assert find_device("cpu") == torch.device("cpu")
    # pinned memory and library handles follow the current device
    assert counts.chosen == ["cuda:3", "cuda:1"]
    with (
        fake_cuda(devices=2),
        pytest.raises(UserError, match="Process 3 of this machine has no GPU, as there are only 2"),
    ):
        find_device("cuda")


def test_of_an_error_the_first_line_is_quoted_or_its_name():
    assert first_line(RuntimeError("\nno such GPU.\nTrace: ...")) == "no such GPU"
    assert len(first_line(RuntimeError("x" * 10_000))) < 310
    assert first_line(AssertionError()) == "AssertionError"
