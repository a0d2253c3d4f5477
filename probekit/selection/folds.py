"""Which rows a probe is fitted on and chosen with: the stored split, a redrawn one (seeds), or a small subset.

N rows of train and val joined, in this order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from igpt_model.hashing import hash_arrays
from probekit.datasets.splits import random_bits, stratified_holdout, stratified_subset
from probekit.runtime.errors import UserError

CV_BELOW = 20_000  # with fewer training rows a val split of a tenth is too small to choose by
FOLDS = 5


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """The rows of train and val that one seed uses. Nothing here comes from the test split but its row ids.

    Attributes
    ----------
    seed : 0 is the split as stored, every row once
    positions : int64 (n,), the used rows among train and val joined, ascending
    y : int64 (n,) their labels
    weights : float64 (n,), how often each counts (1, or the count of a bootstrap draw)
    is_val : bool (n,), the rows held out when C is chosen by a val split
    split_hash : identity of train, val and test by row id
    subset_hash : identity of `positions` and `weights`
    """

    seed: int
    positions: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    is_val: np.ndarray
    split_hash: str
    subset_hash: str

    def selection(self, rule: str) -> str:
        """How C is chosen: `rule` "val" or "cv5" as it is; "auto" is "cv5" below 20,000 training rows."""
        if rule in ("val", "cv5"):
            return rule
        return "cv5" if int((~self.is_val).sum()) < CV_BELOW else "val"

    def rounds(self, selection: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs (rows to fit, rows held out), positions within the n rows: one for "val", five folds for "cv5".

        A row drawn twice by the bootstrap is one row with weight 2, so no row is on both sides.
        """
        if selection == "val":
            strange = np.setdiff1d(self.y[self.is_val], self.y[~self.is_val])
            if len(strange) or not self.is_val.any():
                what = f"holds label {strange[0]}, which no training row has" if len(strange) else "is empty"
                raise UserError(f"The val split {what}: split the rows anew, or choose by cross-validation.")
            return [(np.flatnonzero(~self.is_val), np.flatnonzero(self.is_val))]
        from sklearn.model_selection import StratifiedKFold

        smallest = int(np.unique(self.y, return_counts=True)[1].min())
        if smallest < 2:
            raise UserError("A class has one training row only, but choosing C needs two: add rows or drop the class.")
        folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=self.seed)
        return list(folds.split(np.zeros(len(self.y)), self.y))


def training_rows(store: Any, seed: int = 0, train_rows: int | None = None) -> TrainingRows:
    """The training rows of one seed.

    Parameters
    ----------
    store : FeatureStore; without a "val" split a tenth of "train" is held out
    seed : 0 takes the stored split; another seed redraws val and resamples the rows within each class (bootstrap)
    train_rows : use only so many labelled rows, val included, in class proportion; each seed draws its own

    Raises
    ------
    UserError
        Splits are missing, labels are of one class, or more rows are asked for than there are.
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
    if train_rows is None:
        counts = _bootstrap_counts(labels, is_val, seed) if seed > 0 else np.ones(len(labels))
    else:
        if not 2 <= train_rows <= len(labels):
            raise UserError(
                f"{train_rows} training rows were asked for, but {_name(store)} has {len(labels)} (least: 2)."
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


def _name(store: Any) -> str:
    return str(getattr(store, "path", "the feature file"))
