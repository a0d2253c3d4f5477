"""STL-10 from the official binary archive, packed or extracted. Row ids: the position in the file."""

from pathlib import Path

import numpy as np

from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.sources import Archive, locate
from probekit.runtime.errors import UserError

SOURCE = "A. Coates, H. Lee, A. Ng, An Analysis of Single Layer Networks in Unsupervised Feature Learning, AISTATS 2011"
ARCHIVE = Archive("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", "stl10_binary")
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96


def load(
    name: str, root: str | Path | None = None, fold: int | None = None, verify: bool = True, split_seed: int = 0
) -> Dataset:
    """Read the labelled part: 8,000 test and 5,000 training images of 96 x 96, or one published training `fold` (0 to
    9)."""
    if fold is not None and fold not in range(10):
        raise UserError(f"Fold {fold} was requested; STL-10 has folds 0 to 9.")
    files, _ = locate(name, root, [ARCHIVE], ["train_X.bin"])

    def part(which: str, chosen: int | None) -> Split:
        names = [f"{which}_X.bin", f"{which}_y.bin", *(["fold_indices.txt"] if chosen is not None else [])]
        pixels, labels, *folds = files.read(*names)
        if not pixels or len(pixels) % (3 * SIDE * SIDE):
            raise UserError(f"{which}_X.bin has {len(pixels)} bytes, not a whole number of images; extract it again.")
        # each plane is stored column by column
        planes = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
        images = ArrayImages(planes.transpose(0, 3, 2, 1))
        rows = Split.of(images, np.frombuffer(labels, dtype=np.uint8).astype(np.int64) - 1)
        if chosen is None:
            return rows
        try:
            return rows.take(np.array(folds[0].decode().splitlines()[chosen].split(), dtype=np.int64))
        except (ValueError, IndexError) as error:
            raise UserError(f"fold_indices.txt has no rows of fold {chosen} ({error}); extract it again.") from None

    names = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]
    provenance = {"source": SOURCE, "fold": fold, **files.provenance(*names, verify=verify)}
    return build(
        name, CLASSES, provenance, lambda: part("train", fold), lambda: part("test", None), split_seed=split_seed
    )
