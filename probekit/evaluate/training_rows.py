"""Which rows of a feature file a seed uses: the stored split, a redrawn one, or a small subset.

N rows of train and val joined, in this order.
"""

from collections.abc import Sequence

import numpy as np

from igpt_model.hashing import hash_arrays
from igpt_model.ranges import SEEDS, check_range
from probekit.datasets.splits import random_bits, stratified_holdout, stratified_subset
from probekit.features.readable import Features
from probekit.runtime.errors import UserError
from probekit.selection.folds import TrainingRows


def training_rows(
    store: Features, seed: int = 0, train_rows: int | None = None, per_class: int | None = None
) -> TrainingRows:
    """The training rows of one seed.

    Parameters
    ----------
    store : FeatureStore; without a "val" split a tenth of "train" is held out
    seed : 0 takes the stored split; another seed redraws val and resamples the rows within each class (bootstrap)
    train_rows : use only so many labelled rows, val included, in class proportion; each seed draws its own
    per_class : use only so many labelled rows of each class instead (few-shot); each seed draws its own
    """
    if "train" not in store.splits or "test" not in store.splits:
        raise UserError(f"{_name(store)} has splits {', '.join(store.splits)}; probing needs train and test.")
    parts = ["train", "val"] if "val" in store.splits else ["train"]
    labels = np.concatenate([store.labels(part) for part in parts])
    ids = np.concatenate([store.row_ids(part) for part in parts])
    if len(np.unique(labels)) < 2:
        raise UserError(f"The training labels of {_name(store)} are all {labels[0]}, but a probe needs two classes.")
    is_val = np.arange(len(labels)) >= len(store.labels("train"))
    if seed > 0 or not is_val.any():
        fraction = is_val.mean() if is_val.any() else 0.1
        is_val = np.isin(np.arange(len(labels)), stratified_holdout(labels, float(fraction), seed)[1])
    if per_class is not None:
        counts = np.zeros(len(labels))
        counts[_rows_of_each_class(store, labels, per_class, seed)] = 1
    elif train_rows is None:
        counts = _bootstrap_counts(labels, is_val, seed) if seed > 0 else np.ones(len(labels))
    else:
        if not 2 <= train_rows <= len(labels):
            raise UserError(
                f"{train_rows} training rows were requested, but {_name(store)} has {len(labels)} (least: 2)."
            )
        counts = np.zeros(len(labels))
        counts[stratified_subset(labels, train_rows, seed)] = 1
    positions = np.flatnonzero(counts)
    return TrainingRows(
        seed=seed,
        positions=positions,
        y=labels[positions],
        weights=counts[positions],
        is_val=is_val[positions],
        split_hash=hash_arrays({"train": ids[~is_val], "val": ids[is_val], "test": store.row_ids("test")}),
        subset_hash=hash_arrays({"positions": positions, "weights": counts[positions]}),
    )


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """0 to n-1 for a count n, else the seeds themselves."""
    if isinstance(seeds, int) and seeds > SEEDS.most:
        check_range("seeds", seeds, SEEDS)
    listed = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not listed or min(listed) < 0:
        raise UserError(f"seeds is {seeds}, but a count of at least 1 or a list of seeds from 0 up is needed.")
    return listed


def _rows_of_each_class(store: Features, labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of `per_class` rows of each class: those with the smallest random bits of this seed."""
    found, sizes = np.unique(labels, return_counts=True)
    if per_class < 1 or sizes.min() < per_class:
        raise UserError(
            f"{per_class} rows of each class were requested, but {_name(store)} has 1 to {sizes.min()} of every class "
            f"(fewest: label {found[sizes.argmin()]})."
        )
    bits = random_bits(seed + (1 << 33), np.arange(len(labels)))
    order = np.lexsort((bits, labels))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.sort(np.concatenate([order[start : start + per_class] for start in starts]))


def _bootstrap_counts(labels: np.ndarray, is_val: np.ndarray, seed: int) -> np.ndarray:
    """How often each row is drawn when each class is resampled, in train and in val, with replacement: (N,)."""
    counts = np.zeros(len(labels))
    for label in np.unique(labels):
        for held in (False, True):
            rows = np.flatnonzero((labels == label) & (is_val == held))
            # the integer rule of the splits, the same on every machine, with a seed the splits do not use
            draws = random_bits(seed + (1 << 32), rows) % np.uint64(max(len(rows), 1))
            np.add.at(counts, rows[draws.astype(np.int64)], 1)
    return counts


def _name(store: Features) -> str:
    return str(store.path or "the feature file")
