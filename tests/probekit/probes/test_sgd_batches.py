"""Batches streamed from HDF5 are those from memory, bit for bit, wherever a run begins; a killed run ends the same."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from probekit.probes.sgd import SGDConfig, train_sgd
from probekit.probes.sgd_batches import array_batches, epoch_order

CONFIG = SGDConfig(learning_rates=(1.0, 0.1), epochs=2, batch_size=48)
N, WIDTHS, BUFFER = 1000, (3, 5), {"buffer": 128}  # eight buffers to an epoch


@pytest.fixture
def stored(tmp_path):
    """Two layers in memory and in a file."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    layers = [(rng.normal(size=(N, width)) + np.eye(3)[y][:, :1]).astype(np.float32) for width in WIDTHS]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number, X in enumerate(layers):
            file[str(number)] = X
        file["y"] = y
    with h5py.File(tmp_path / "x.h5") as file:
        yield layers, [file["0"], file["1"]], y


class Counted:
    """A source that notes how many rows each read takes."""

    def __init__(self, source):
        self.source, self.shape, self.reads = source, source.shape, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.reads.append(rows.stop - rows.start)
        return self.source[rows]


@pytest.mark.parametrize("start", [0, 1, 7, 19, 20, 33])
def test_streamed_batches_are_those_in_memory(stored, start):
    layers, sources, y = stored
    held, n_steps = array_batches(layers, y, CONFIG, **BUFFER)
    streamed, n_too = array_batches(sources, y, CONFIG, **BUFFER)
    assert n_steps == n_too == 2 * (N // 48)
    pairs = list(zip(held(start), streamed(start), strict=True))
    assert len(pairs) == n_steps - start
    for (X, labels), (read, same) in pairs:
        np.testing.assert_array_equal(labels, same)
        for here, there in zip(X, read, strict=True):
            np.testing.assert_array_equal(here, there)


def test_a_stream_holds_two_buffers_and_reads_neighbours_together(stored):
    _, sources, y = stored
    counted, most = [Counted(source) for source in sources], []
    batches, _ = array_batches(counted, y, CONFIG, **BUFFER)
    for step, _ in enumerate(batches(0)):
        most.append(sum(counted[0].reads) - 48 * (step + 1))  # rows read and not yet handed out
        if step == N // 48 - 1:
            break
    assert max(most) <= 2 * 128
    assert sum(counted[0].reads) <= N  # no row is read twice
    again = [Counted(source) for source in sources]
    next(array_batches(again, y, CONFIG, buffer=960)[0](0))
    assert max(again[0].reads) >= 15  # a block of neighbours is a 64th of the buffer


def test_every_row_is_seen_once_an_epoch_and_epochs_differ():
    orders = [epoch_order(N, 128, 0, epoch) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (epoch_order(N, 128, 1, 0) != orders[0]).mean() > 0.9
    early = orders[0][:128]  # a buffer holds blocks from all over the file, in no order
    assert early.max() - early.min() > 500
    assert abs(np.corrcoef(np.arange(128), early)[0, 1]) < 0.3
    np.testing.assert_array_equal(epoch_order(100, 128, 0, 0), np.random.default_rng([0, 0]).permutation(100))


KILLED = """
import os, signal, sys
import h5py
from probekit.probes.sgd import SGDConfig, train_sgd
from probekit.probes.sgd_batches import array_batches
folder = sys.argv[1]
config = SGDConfig(learning_rates=(1.0, 0.1), epochs=2, batch_size=48)
with h5py.File(f"{folder}/x.h5") as file:
    batches, n_steps = array_batches([file["0"], file["1"]], file["y"][()], config, buffer=128)
    kill = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == 29 else None
    train_sgd(batches, (3, 5), 3, n_steps, config, state=f"{folder}/state.safetensors", save_every=6, progress=kill)
"""


def test_a_killed_stream_goes_on_in_the_middle_of_an_epoch(stored, tmp_path):
    layers, sources, y = stored
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=1200)
    assert killed.returncode == -9, killed.stderr.decode()
    batches, n_steps = array_batches(sources, y, CONFIG, **BUFFER)
    begun = []

    def noted(step):
        begun.append(step)
        return batches(step)

    state = tmp_path / "state.safetensors"
    resumed = train_sgd(noted, WIDTHS, 3, n_steps, CONFIG, state=state, save_every=6)
    assert begun == [24]  # epochs end after 20 and 40 steps
    undisturbed = train_sgd(array_batches(layers, y, CONFIG, **BUFFER)[0], WIDTHS, 3, n_steps, CONFIG)
    for layer in range(2):
        assert torch.equal(resumed.coef[layer], undisturbed.coef[layer])
        assert torch.equal(resumed.intercept[layer], undisturbed.intercept[layer])
