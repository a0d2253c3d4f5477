"""Fashion-MNIST at random places: what `wandering-digits` does to digits, done to 70,000 pictures of garments.

    probekit train analyses.wandering_fashion:dataset --resolution 14 ...      # and extract, study, from a checkout

Each picture is reduced to 10 x 10 and put at one of the 25 places of a black 14 x 14 canvas; the place is a function of
the row id. A garment's class does not depend on its place, but every raw pixel does: a linear probe of the pixels loses
30 points. Row ids and the validation split are those of `fashion-mnist`. Letters: N images.
"""

from functools import partial

import numpy as np
from PIL import Image

from probekit.datasets import load_dataset
from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split, Splits
from probekit.datasets.splits import random_bits

SIDE, CANVAS, SEED = 10, 14, 0
PLACES_A_SIDE = CANVAS - SIDE + 1


def wander(split: Split) -> Split:
    """Return the split with every picture reduced and put at its place, uint8 (N, 14, 14)."""
    row_ids = np.asarray(split.row_ids)
    place_N = (random_bits(SEED, row_ids) % np.uint64(PLACES_A_SIDE**2)).astype(np.int64)
    canvas = np.zeros((len(row_ids), CANVAS, CANVAS), dtype=np.uint8)
    for n, image in enumerate(split.images(0, len(row_ids))):
        top, left = divmod(int(place_N[n]), PLACES_A_SIDE)
        small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        canvas[n, top : top + SIDE, left : left + SIDE] = np.asarray(small)
    return Split.of(ArrayImages(canvas), np.asarray(split.labels), row_ids)


def dataset() -> Dataset:
    """Return the data set of three splits; needs Debian's package dataset-fashion-mnist."""
    plain = load_dataset("fashion-mnist")
    options = {"side": SIDE, "canvas": CANVAS, "seed": SEED, "kernel": "bilinear"}
    provenance = {**plain.provenance, "wandering": options}
    splits = Splits({name: partial(_read, plain, name) for name in plain.splits})
    return Dataset("wandering-fashion", plain.classes, provenance, splits)


def _read(plain: Dataset, name: str) -> Split:
    return wander(plain.splits[name])
