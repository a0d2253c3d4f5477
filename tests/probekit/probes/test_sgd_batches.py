"""Batches streamed from HDF5 are those from memory, bit for bit."""

from itertools import islice

import h5py
import numpy as np
import pytest

from probekit.probes.sgd import SGDConfig, array_batches, count_steps, epoch_order

CONFIG = SGDConfig(learning_rates=(1.0, 0.1), epochs=2, batch_size=48)
N, WIDTH = 1000, 5


@pytest.fixture
def stored(tmp_path):
    """A layer in memory and in a file."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    X = (rng.normal(size=(N, WIDTH)) + np.eye(3)[y][:, :1]).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X"] = X
    with h5py.File(tmp_path / "x.h5") as file:
        yield X, file["X"], y


class Counted:
    """A source that notes how many rows each read takes."""

    def __init__(self, source):
        self.source, self.shape, self.reads = source, source.shape, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.reads.append(rows.stop - rows.start)
        return self.source[rows]


@pytest.mark.parametrize("buffer", [1, 128, 144, 999, N, None])
def test_streamed_batches_are_those_in_memory(stored, buffer):
    X, source, y = stored
    pairs = list(zip(*(array_batches(rows, y, CONFIG, buffer=buffer) for rows in (X, source)), strict=True))
    assert len(pairs) == count_steps(N, CONFIG) == 2 * (N // 48)
    for (held, labels), (read, same) in pairs:
        assert len(labels) == 48
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_array_equal(held, read)


def test_what_fits_in_one_buffer_is_shuffled_at_once(stored):
    X, _, y = stored
    order = np.concatenate([np.random.default_rng([0, epoch]).permutation(N)[: N // 48 * 48] for epoch in (0, 1)])
    for at, (held, labels) in enumerate(array_batches(X, y, CONFIG)):
        rows = np.sort(order[48 * at : 48 * (at + 1)])
        np.testing.assert_array_equal(held, X[rows])
        np.testing.assert_array_equal(labels, y[rows])


def test_a_stream_holds_two_buffers_and_reads_neighbours_together(stored):
    _, source, y = stored
    counted, most = Counted(source), []
    for step, _ in enumerate(islice(array_batches(counted, y, CONFIG, buffer=128), N // 48)):
        most.append(sum(counted.reads) - 48 * (step + 1))  # rows read and not yet handed out
    assert max(most) <= 2 * 144  # whole batches
    assert sum(counted.reads) <= N  # no row is read twice
    again = Counted(source)
    next(array_batches(again, y, CONFIG, buffer=960))
    assert max(again.reads) >= 15  # a block of neighbours is a 64th of the buffer


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
