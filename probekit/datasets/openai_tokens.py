"""The token arrays released with iGPT: {imagenet,cifar10}_{tr,va,te}{X,Y}.npy and kmeans_centers.npy.

X: palette indices (N, 1024) in raster order; Y: one-hot labels (N, K); centres (512, 3) in [-1, 1]. Tokens are decoded
to RGB images of their palette colours, so that any encoder can read them; encoding with the same palette restores the
tokens. Row ids: the position in the array. Letters: N images, T tokens, K classes.
"""

from functools import partial
from pathlib import Path

import numpy as np

from igpt_model.hashing import hash_json
from igpt_model.palette import Palette
from igpt_model.whole_files import load_npy
from probekit.datasets.images import MadeImages
from probekit.datasets.published import CIFAR10_CLASSES, fetch_command, not_found
from probekit.datasets.records import Dataset, Split, build
from probekit.runtime.errors import UserError

SOURCE = "OpenAI, image-gpt, released data (2020): tokens of centre-cropped 32 x 32 images, for evaluation"
BASE = "https://openaipublic.blob.core.windows.net/image-gpt/"


def _decoded(palette: Palette, tokens: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return list(palette.decode(np.asarray(tokens[rows])))


def load(name: str, root: str | Path | None = None, part: str = "cifar10", split_seed: int = 0) -> Dataset:
    """Read the released token arrays, of `part` cifar10 or imagenet, and the kmeans_centers.npy of their palette."""
    if part not in ("cifar10", "imagenet"):
        raise UserError(f"part={part!r} was given; choose cifar10 or imagenet.")
    if root is None:
        raise not_found(name)
    place = Path(root)
    palette = Palette(_array(place / "kmeans_centers.npy"))

    def read(split: str) -> Split:
        tokens = _array(place / f"{part}_{split}X.npy")
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or round(tokens.shape[1] ** 0.5) ** 2 != tokens.shape[1]:
            raise UserError(
                f"{part}_{split}X.npy contains {tokens.dtype} {tokens.shape}, not tokens of square images; download it "
                "again."
            )
        return Split.of(
            MadeImages(tokens, partial(_decoded, palette)),
            _labels(_array(place / f"{part}_{split}Y.npy"), f"{part}_{split}Y"),
        )

    files = sorted(place.glob(f"{part}_*.npy"))
    sizes = {file.name: file.stat().st_size for file in files}
    provenance = {
        "source": SOURCE,
        "path": str(place),
        "part": part,
        "palette_hash": palette.hash,
        "files": sizes,
        "listing_hash": hash_json(sizes),
    }
    classes = CIFAR10_CLASSES if part == "cifar10" else tuple(map(str, range(1000)))
    has_val = (place / f"{part}_vaX.npy").is_file()
    return build(
        f"{name}-{part}",
        classes,
        provenance,
        lambda: read("tr"),
        lambda: read("te"),
        (lambda: read("va")) if has_val else None,
        split_seed=split_seed,
    )


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; run {fetch_command('openai-tokens', path.parent)} for the palette and "
            f"the arrays of CIFAR-10, or download those of ImageNet from {BASE}."
        )
    return load_npy(path, "r")


def _labels(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim == 1:
        return np.asarray(values).astype(np.int64)
    if values.ndim != 2 or not np.array_equal(np.asarray(values).astype(bool).sum(1), np.ones(len(values))):
        raise UserError(f"{name} of shape {values.shape} is not one-hot; download it again.")
    return np.asarray(values).argmax(1)
