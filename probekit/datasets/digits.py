"""Digits without a download: scikit-learn's 1,797 scans, as they are, inverted, or wandering over a larger canvas.

A linear probe of raw pixels fails on the last two, so that a representation can show what it is worth. Inverted: half
of the digits, drawn at random, are black on white. Wandering: each digit, quantised to four grey levels, lies at one of
25 places on a black 12x12 canvas.

Row ids: `digits`: the digit's number in scikit-learn's order. Inverted: `2 * digit + inverted`. Wandering:
`25 * digit + place`, place = 5 * row + column of the upper left corner. So both data sets of a kind number the same
picture alike, and `row_id // 25` is the digit.
"""

from collections.abc import Callable
from functools import partial

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


def _greys(scans: np.ndarray) -> np.ndarray:
    return np.rint(scans * (255 / 16)).astype(np.uint8)


def _pool_and_test(labels_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return stratified_holdout(labels_N, N_TEST / len(labels_N), seed)


def place(levels_N88: np.ndarray, digits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Put the chosen digits at the chosen places: uint8 (M, 12, 12)."""
    canvas = np.zeros((len(digits), CANVAS, CANVAS), dtype=np.uint8)
    tops, lefts = np.divmod(places, CANVAS - SIDE + 1)
    for at in range(PLACES):
        here = places == at
        if here.any():
            top, left = tops[here][0], lefts[here][0]
            canvas[here, top : top + SIDE, left : left + SIDE] = levels_N88[digits[here]]
    return canvas


def load_centred(name: str = "digits", seed: int = 0) -> Dataset:
    """scikit-learn's digits as they are: 8x8, 17 grey levels (0 to 16, stored as 0 to 255)."""
    scans, labels = _scans()
    everything = Split.of(ArrayImages(_greys(scans)), labels)
    pool, test = _pool_and_test(labels, seed)
    provenance = {
        "source": SOURCE,
        "options": {"seed": seed},
        "test_rule": f"stratified {N_TEST} of {len(labels)} rows",
    }
    return build(
        name, CLASSES, provenance, lambda: everything.take(pool), lambda: everything.take(test), split_seed=seed
    )


def load_inverted(name: str = "inverted-digits", seed: int = 0) -> Dataset:
    """Digits, inverted or not at random; in train and val of `inverted-digits-2` each is there both ways."""
    scans, labels = _scans()
    greys = _greys(scans)

    def draw(digits: np.ndarray, inverted: np.ndarray) -> np.ndarray:
        return np.where(inverted[:, None, None] == 1, 255 - greys[digits], greys[digits])

    every = name.endswith("-2")
    return _in_forms(name, seed, labels, draw, 2, every, {"forms": 2 if every else 1}, "2 * digit + inverted")


def load_wandering(name: str = "wandering-digits", seed: int = 0) -> Dataset:
    """Wandering digits: one place a digit, or in train and val (`wandering-digits-25`) all 25."""
    scans, labels = _scans()
    step = 255 // (LEVELS - 1)
    levels = (np.rint(scans * ((LEVELS - 1) / 16)) * step).astype(np.uint8)
    every = name.endswith("-25")
    options = {"canvas": CANVAS, "grey_levels": LEVELS, "places": PLACES if every else 1}
    return _in_forms(name, seed, labels, partial(place, levels), PLACES, every, options, "25 * digit + place")


def _in_forms(
    name: str,
    seed: int,
    labels: np.ndarray,
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray],
    forms: int,
    every: bool,
    options: dict[str, int],
    row_ids: str,
) -> Dataset:
    """Digits that `draw` shows in one of several forms, drawn by seed; with `every`, train and val have all forms.

    900 digits are for training (810 train, 90 val) and 897 for testing; test does not depend on `every`.
    """
    pool, test = _pool_and_test(labels, seed)
    own_form = (random_bits(seed, np.arange(len(labels))) % np.uint64(forms)).astype(np.int64)

    def split(digits: np.ndarray, shown: np.ndarray) -> Split:
        return Split.of(ArrayImages(draw(digits, shown)), labels[digits], forms * digits + shown)

    def one_each(digits: np.ndarray) -> Split:
        return split(digits, own_form[digits])

    def all_forms(digits: np.ndarray) -> Split:
        return split(np.repeat(digits, forms), np.tile(np.arange(forms), len(digits)))

    kept, held = stratified_holdout(labels[pool], 0.1, seed)
    make = all_forms if every else one_each
    provenance = {
        "source": SOURCE,
        "options": {"seed": seed, **options},
        "row_ids": row_ids,
        "test_rule": f"stratified {N_TEST} of {len(labels)} digits",
        "val_rule": "stratified 0.1 of the training digits: no digit is in two splits",
    }
    # val is split by digit, not by row, or one digit's other forms would sit in train
    return build(
        name,
        CLASSES,
        provenance,
        lambda: make(pool[kept]),
        lambda: one_each(test),
        lambda: make(pool[held]),
        split_seed=seed,
    )
