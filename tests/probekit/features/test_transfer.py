"""Features on their way to the host: the same numbers in float32, whatever they were and wherever they came from."""

import threading

import numpy as np
import pytest
import torch

from probekit.features.transfer import Transfer


def test_tensors_and_arrays_arrive_as_float32():
    exact = np.arange(12, dtype=np.float64).reshape(3, 4)
    given = [exact, torch.from_numpy(exact), torch.from_numpy(exact).bfloat16(), exact.astype(np.float16)]
    for found in Transfer(given).arrays():
        assert found.dtype == np.float32
        assert np.array_equal(found, exact)


@pytest.mark.parametrize(
    "form",
    [
        lambda X: np.ascontiguousarray(X[::-1])[::-1],
        lambda X: X.astype(">f8"),
        lambda X: X.astype(np.longdouble),
        lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
        lambda X: torch.from_numpy(-X)._neg_view(),
    ],
)
def test_forms_that_torch_and_numpy_do_not_share(form):
    exact = np.arange(12, dtype=np.float32).reshape(3, 4)
    (found,) = Transfer([form(exact)]).arrays()
    assert found.dtype == np.float32
    assert np.array_equal(found, exact)


def test_no_layers_no_arrays():
    assert Transfer([]).arrays() == []


@pytest.mark.gpu
def test_a_batch_arrives_whole_while_the_next_ones_are_computed():
    """What is copied too early, or overwritten by a later batch in the same memory, differs."""
    waiting, found = [], []
    a = torch.randn(4096, 4096, device="cuda")
    for batch in range(20):
        slow = (a @ a).sum() * 0  # keeps the stream busy before the features are there
        waiting.append(
            Transfer([torch.full((64, 512), float(batch + layer), device="cuda") + slow for layer in range(5)])
        )
    thread = threading.Thread(target=lambda: found.extend(transfer.arrays() for transfer in waiting))
    thread.start()
    for _ in range(50):
        torch.full((64, 512), -1.0, device="cuda")
    thread.join()
    for batch, arrays in enumerate(found):
        for layer, X in enumerate(arrays):
            assert np.array_equal(X, np.full_like(X, batch + layer))
