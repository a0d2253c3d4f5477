"""The training rows of a probe, and their rounds of (rows to fit, held-out rows) for choosing its penalty.

n rows of train and val concatenated, in this order.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from probekit.runtime.errors import UserError

CV_BELOW = 20_000  # with fewer training rows, a val split of a tenth is too small for the choice
FOLDS = 5


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """The rows of train and val that one seed uses; of the test split only the row ids are used.

    Attributes
    ----------
    seed : 0 is the split as stored, every row once
    positions : int64 (n,), ascending positions of the used rows in train and val concatenated
    y : int64 (n,) their labels
    weights : float64 (n,), weight of each row (1, or its bootstrap count)
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

    @cached_property
    def encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct labels (K,), and the class index of each row (n,)."""
        classes, columns = np.unique(self.y, return_inverse=True)
        return classes, columns

    def final(self, refit: str) -> np.ndarray:
        """Positions within the n rows of the final fit: "train+val", or "train" alone."""
        return np.flatnonzero(~self.is_val) if refit == "train" else np.arange(len(self.y))

    def resolve_rule(self, rule: str) -> str:
        """How C is chosen: `rule`, where "auto" means "cv5" below 20,000 training rows and otherwise "val"."""
        if rule in ("val", "cv5"):
            return rule
        return "cv5" if int((~self.is_val).sum()) < CV_BELOW else "val"

    def n_rounds(self, rule: str) -> int:
        """Number of rounds that `rounds` returns."""
        return 1 if rule == "val" else self._n_folds

    @cached_property
    def _n_folds(self) -> int:
        return min(FOLDS, int(np.bincount(self.encoded[1]).min()))

    def rounds(self, rule: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs (rows to fit, rows held out), positions within the n rows: one for "val", five folds for "cv5".

        A row drawn twice by the bootstrap is one row with weight 2, so no row is on both sides.
        """
        if rule == "val":
            unseen = np.setdiff1d(self.y[self.is_val], self.y[~self.is_val])
            if len(unseen) or not self.is_val.any():
                what = f"contains label {unseen[0]}, which no training row has" if len(unseen) else "is empty"
                raise UserError(f"The val split {what}; split the rows differently, or use cross-validation.")
            return [(np.flatnonzero(~self.is_val), np.flatnonzero(self.is_val))]
        from sklearn.model_selection import StratifiedKFold

        if self._n_folds < 2:
            raise UserError("A class has only one training row, but choosing C needs two; add rows or drop the class.")
        folds = StratifiedKFold(self._n_folds, shuffle=True, random_state=self.seed)
        return list(folds.split(np.zeros(len(self.y)), self.y))
