"""Digits without a download: scikit-learn's 1,797 scans, centred or shifted on a larger canvas.

Wandering digits are a task on which raw pixels do badly and learned features can do better: each 8x8 digit, quantised
to four grey levels, is placed at one of 25 positions on a black 12x12 canvas.

Row ids: `digits`: the index in scikit-learn's order. Wandering: `25 * index + place`, place = 5 * row + column of the
upper left corner, so an image has the same id in both wandering data sets, and `row_id // 25` is the digit's index.
"""

import numpy as np

from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.splits import random_bits, stratified_holdout

CANVAS, SIDE, LEVELS = 12, 8, 4
PLACES = (CANVAS - SIDE + 1) ** 2
N_TEST = 897
SOURCE = (
    "scikit-learn load_digits (UCI optical recognition of handwritten digits, test part; E. Alpaydin, C. Kaynak, 1998)"
)
CLASSES = tuple("0123456789")


def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.int64), bunch.target.astype(np.int64)


def _pool_and_test(labels_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return stratified_holdout(labels_N, N_TEST / len(labels_N), seed)


def place(levels_N88: np.ndarray, digits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Draw each digit at its position on the canvas: uint8 (M, 12, 12)."""
    canvas = np.zeros((len(digits), CANVAS, CANVAS), dtype=np.uint8)
    tops, lefts = np.divmod(places, CANVAS - SIDE + 1)
    for at in range(PLACES):
        here = places == at
        if here.any():
            top, left = tops[here][0], lefts[here][0]
            canvas[here, top : top + SIDE, left : left + SIDE] = levels_N88[digits[here]]
    return canvas


def load_centred(name: str = "digits", seed: int = 0) -> Dataset:
    """scikit-learn's digits: 8x8, 17 grey levels (0 to 16, rescaled to 0 to 255)."""
    scans, labels = _scans()
    source = ArrayImages(np.rint(scans * (255 / 16)).astype(np.uint8))
    everything = Split.of(source, labels)
    pool, test = _pool_and_test(labels, seed)
    provenance = {
        "source": SOURCE,
        "options": {"seed": seed},
        "test_rule": f"stratified {N_TEST} of {len(labels)} rows",
    }
    return build(
        name, CLASSES, provenance, lambda: everything.take(pool), lambda: everything.take(test), split_seed=seed
    )


def load_wandering(name: str = "wandering-digits", seed: int = 0) -> Dataset:
    """Wandering digits: each digit at one position, or in train and val of `wandering-digits-25` at all 25.

    900 digits are for training (810 train, 90 val) and 897 for testing; test is the same in both data sets.
    """
    scans, labels = _scans()
    step = 255 // (LEVELS - 1)
    levels = (np.rint(scans * ((LEVELS - 1) / 16)) * step).astype(np.uint8)
    pool, test = _pool_and_test(labels, seed)
    own_place = (random_bits(seed, np.arange(len(labels))) % np.uint64(PLACES)).astype(np.int64)

    def one_each(digits: np.ndarray) -> Split:
        row_ids = PLACES * digits + own_place[digits]
        return Split.of(ArrayImages(place(levels, digits, own_place[digits])), labels[digits], row_ids)

    def all_places(digits: np.ndarray) -> Split:
        repeated = np.repeat(digits, PLACES)
        places = np.tile(np.arange(PLACES), len(digits))
        return Split.of(ArrayImages(place(levels, repeated, places)), labels[repeated], PLACES * repeated + places)

    kept, held = stratified_holdout(labels[pool], 0.1, seed)
    make = all_places if name.endswith("-25") else one_each
    provenance = {
        "source": SOURCE,
        "options": {
            "seed": seed,
            "canvas": CANVAS,
            "grey_levels": LEVELS,
            "places": PLACES if make is all_places else 1,
        },
        "row_ids": "25 * digit + place",
        "test_rule": f"stratified {N_TEST} of {len(labels)} digits",
        "val_rule": "stratified 0.1 of the training digits: no digit is in two splits",
    }
    # val is split by digit, not by row, so that no digit is in train at other positions
    return build(
        name,
        CLASSES,
        provenance,
        lambda: make(pool[kept]),
        lambda: one_each(test),
        lambda: make(pool[held]),
        split_seed=seed,
    )
