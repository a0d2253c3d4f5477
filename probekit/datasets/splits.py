"""Splitting rows: stratified, seeded, and identical on every machine and NumPy version; and the names of splits.

Shape legend: N rows.
"""

import numpy as np

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_bits(seed: int, ids_N: np.ndarray) -> np.ndarray:
    """uint64 (N,): 64 random bits for each (seed, id), by the SplitMix64 mixer (Steele, Lea and Flood, OOPSLA 2014).

    Implemented here because the streams of `numpy.random.Generator` may change between releases, and splits must not.
    """

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    with np.errstate(over="ignore"):
        start = mix(np.array([seed % (1 << 64)], dtype=np.uint64) + _GOLDEN)
        return mix(start + (np.asarray(ids_N).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def stratified_holdout(labels: np.ndarray, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a kept and a held-out part with the same class proportions.

    `round(fraction * N)` rows are held out, allocated to the classes by largest remainder (ties: the lower label); a
    class with two rows or more has at least one held out and one kept. Within a class, the rows with the smallest
    `random_bits(seed, row)` are held out.

    Parameters
    ----------
    labels : int (N,)
    fraction : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    kept, held_out : int64 (N_kept,), (N_held,)
        Row positions, ascending.

    Raises
    ------
    ValueError
        `fraction` is not strictly between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} was given; give a number between 0 and 1.")
    class_N, sizes, rank_N = _ranked(labels, random_bits(seed, np.arange(len(labels))))
    quota = round(fraction * len(labels)) * sizes / max(len(labels), 1)
    counts = np.floor(quota).astype(np.int64)
    left = round(fraction * len(labels)) - int(counts.sum())
    # rounded, so that floating-point error in 0.1 * 90 does not outrank an exact remainder
    counts[np.argsort(-np.round(quota - counts, 9), kind="stable")[:left]] += 1
    counts = np.clip(counts, np.where(sizes >= 2, 1, 0), sizes - 1)
    held = rank_N < counts[class_N]
    return np.flatnonzero(~held), np.flatnonzero(held)


def _ranked(labels: np.ndarray, bits_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class of each row, the size of each class, and each row's rank by its bits in its class."""
    _, class_N, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    rank_N = np.empty(len(bits_N), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank_N[np.lexsort((bits_N, class_N))] = np.arange(len(bits_N)) - np.repeat(starts, sizes)
    return class_N, sizes, rank_N


def stratified_subset(labels: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """At most `size` row positions (ascending), stratified by class; used by `--limit`.

    A class can be missing only if `size` is smaller than the number of classes.
    """
    if size >= len(labels):
        return np.arange(len(labels))
    if size < 1:
        raise ValueError(f"A subset of {size} rows was requested; request at least 1.")
    bits_N = random_bits(seed, np.arange(len(labels)))
    class_N, sizes, rank_N = _ranked(labels, bits_N)
    # the rows of every class are spread evenly over (0, 1), so the first `size` of the merged order are proportional
    return np.sort(np.lexsort((bits_N, (rank_N + 0.5) / sizes[class_N]))[:size])
