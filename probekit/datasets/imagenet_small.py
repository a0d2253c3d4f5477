"""Downsampled ImageNet (32 x 32 or 64 x 64) from the official pickles: train_data_batch_1 to 10, and val_data.

The official validation images are the test split, as the iGPT paper uses them; val is held out of train. Labels keep
the numbering of the files, 1 to 1,000 (not the usual alphabetical one), shifted to start at 0. Row ids: the position in
the concatenated batches. Letters: N images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from igpt_model.checked_json import read_bytes
from igpt_model.hashing import hash_json
from probekit.datasets.images import ArrayImages, StackedImages
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.restricted_pickle import loads, whole_numbers
from probekit.runtime.errors import UserError

SOURCE = "P. Chrabaszcz, I. Loshchilov, F. Hutter, A Downsampled Variant of ImageNet as an Alternative to CIFAR, 2017"
WHERE = "https://image-net.org/download-images.php (needs an account)"
N_BATCHES = 10


def load(
    name: str, root: str | Path | None = None, batches: Sequence[int] | None = None, split_seed: int = 0
) -> Dataset:
    """Read imagenet32 or imagenet64. `batches` selects training batches (1 to 10), each a tenth of the images, held in
    memory: 0.4 GB at 32 x 32, 1.6 GB at 64 x 64."""
    side = int(name.removeprefix("imagenet"))
    if root is None:
        raise UserError(
            f"No folder was given for {name}; pass root=FOLDER (--root). It can be downloaded from {WHERE}."
        )
    place = Path(root)
    numbers = list(range(1, N_BATCHES + 1)) if batches is None else [int(b) for b in batches]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"#batches={','.join(map(str, numbers))} names a batch twice; name each once.")
    names = [f"train_data_batch_{i}" for i in numbers]
    missing = [part for part in [*names, "val_data"] if not (place / part).is_file()]
    if missing or not names:
        raise UserError(f"{place} lacks {', '.join(missing) or 'any batch'}; extract the files from {WHERE} there.")

    def read(parts: list[str]) -> Split:
        planes, labels = zip(*(_batch(place / part, side) for part in parts), strict=True)
        # views of planar rows, red then green then blue
        images = [ArrayImages(rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)) for rows in planes]
        return Split.of(StackedImages(tuple(images)), np.concatenate(labels))

    sizes = {part: (place / part).stat().st_size for part in [*names, "val_data"]}
    provenance = {"source": SOURCE, "path": str(place), "files": sizes, "listing_hash": hash_json(sizes)}
    classes = tuple(str(k + 1) for k in range(1000))
    return build(name, classes, provenance, lambda: read(names), lambda: read(["val_data"]), split_seed=split_seed)


def _batch(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    value = loads(read_bytes(path, 4 << 30), str(path))
    data = value.get("data") if isinstance(value, dict) else None
    width = 3 * side * side
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (width,):
        raise UserError(
            f"{path} does not contain images of {side} x {side}: expected data (N, {width}) uint8; download it again."
        )
    labels = whole_numbers(value.get("labels"))
    if labels is None or len(labels) != len(data) or labels.min(initial=1) < 1 or labels.max(initial=1) > 1000:
        raise UserError(f"{path} does not contain {len(data)} labels from 1 to 1000, one per image; download it again.")
    return data, labels - 1
