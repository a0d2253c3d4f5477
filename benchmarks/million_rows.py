"""A million rows through extract, verify and inspect; 100,000 files listed: `python benchmarks/million_rows.py`.

A fake encoder of four layers of 16 and blank-cheap pictures (8 x 8, made from the row number) leave only our own work:
preparing, hashing, queueing, writing, checksums, the ledger. Each size runs in a process of its own; memory is its
peak. Rows go to benchmarks/results/million_rows.csv.
"""

import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from rows import parser, record, timed

from probekit.datasets import load_dataset
from probekit.datasets.records import Dataset, Split
from probekit.features.extract import extract
from probekit.features.inspect import inspect
from probekit.features.store import FeatureStore
from probekit.features.verify import verify

LAYERS, WIDTH, BATCH = 4, 16, 1024


class NumberedImages:
    """Pictures made from their row number when they are read: nothing is held in memory."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, rows):
        """The pictures at `rows`, each HWC uint8."""
        pixels = np.zeros((len(rows), 8, 8, 3), np.uint8)
        pixels.reshape(len(rows), -1)[:, :8] = np.asarray(rows, np.int64)[:, None].view(np.uint8)
        return list(pixels)


class FixedEncoder:
    """The first bytes of a picture, scaled: costs next to nothing."""

    layers = tuple(f"{k:02d}" for k in range(LAYERS))
    widths = (WIDTH,) * LAYERS
    provenance = {"name": "fixed"}  # noqa: RUF012

    def prepare(self, image):
        """The picture as it is."""
        return image

    def __call__(self, images, row_ids):
        """Layer k: the picture's first numbers over k + 1."""
        X = torch.from_numpy(images.reshape(len(images), -1)[:, :WIDTH].astype(np.float32))
        return [X / (k + 1) for k in range(LAYERS)]


def data_of(rows):
    """`rows` pictures of ten classes, one split."""
    split = Split.of(NumberedImages(rows), np.arange(rows) % 10)
    return Dataset("numbered", tuple("abcdefghij"), {"name": "numbered"}, {"train": split})


def run(rows, workers, folder):
    """Seconds of each part; the memory that the interpreter and its libraries had before; and at most."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = Path(folder) / f"{rows}.h5"
    took = {}

    def keep(name, action):
        took[name], result = timed(action)
        return result

    keep("extract", lambda: extract(FixedEncoder(), data_of(rows), path, batch_size=BATCH, workers=workers))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    X, _ = keep("read a layer", lambda: FeatureStore.open(path).read("train", 3))
    expected = (rows - 1) % 256 / 4
    assert len(X) == rows, "a row is missing"
    assert X[-1, 0] == np.float32(expected), "the last row is not the last picture"
    report = keep("verify", lambda: verify(path))
    assert report.ok, report.errors
    keep("inspect", lambda: inspect(path))
    path.unlink()
    return took, (peak - before) / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measures(sizes, workers):
    """Rows a second and memory at each size, then growth from the first size to the last."""
    seen = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            took, grown, peak = pool.apply(run, (rows, workers, folder))
        seen.append((rows, took, grown))
        for name, seconds in took.items():
            yield f"{rows:,} rows: {name}, rows/s", rows / seconds
        yield f"{rows:,} rows: memory that extract added, MB", grown
        yield f"{rows:,} rows: peak memory of all, MB", peak
    (small, first, little), (large, last, much) = seen[0], seen[-1]
    yield "time per row, last size over first (goal about 1)", last["extract"] / large / (first["extract"] / small)
    yield "bytes of memory per further row", (much - little) * 2**20 / (large - small)


def listing(count):
    """Seconds and memory to list a folder of `count` (empty) image files in a hundred classes."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        for label in range(100):
            place = Path(folder) / "train" / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count // 100):
                (place / f"n{label:08d}_{number:05d}.JPEG").touch()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took, data = timed(lambda: load_dataset(folder))
        found = sum(len(data.splits[name]) for name in data.splits)
        assert found == count // 100 * 100, f"{found} files were listed"
        return took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def listed(files):
    """How long a folder of many files takes to list, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        took, grown = pool.apply(listing, (files,))
    yield f"{files:,} files: listing, files/s", files / took
    yield f"{files:,} files: memory that listing added, MB", grown


def main():
    """Measure, print, and append the rows."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    options.add_argument("--workers", type=int, default=0)
    options.add_argument("--files", type=int, default=100_000)
    arguments = options.parse_args()
    record("million_rows", listed(arguments.files))
    record("million_rows", measures(arguments.sizes, arguments.workers))


if __name__ == "__main__":
    main()
