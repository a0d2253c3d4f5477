"""How fits are computed: backend, device, number format, and how the rows are shared among processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from igpt_model.devices import find_device
from igpt_model.process_group import current_ranks, join_group
from probekit.runtime.errors import UserError
from probekit.selection.protocol import Protocol
from probekit.solver.path import ProbePath, fit_path


@dataclass(frozen=True)
class FitSettings:
    """What computes the fits of a call.

    Attributes
    ----------
    backend, device : see `fit_path`
    dtype : of the solver's arithmetic, "auto" for `fit_path`'s own choice
    sharded : each rank of a torch.distributed group fits its share of the rows; all call with the same arguments
    on_fit : callback with the number of fits just completed
    """

    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "auto"
    sharded: bool = False
    on_fit: Callable[[int], None] | None = field(default=None, compare=False)

    @property
    def version(self) -> str:
        """The solver's own version string; asking for an absent backend raises `UserError`."""
        return _version(self.backend, self.device)

    def fit_path(self, X: Any, y: np.ndarray, Cs: Any, weights: np.ndarray, protocol: Protocol) -> ProbePath:
        """`solver.fit_path` under a protocol; no warning is given, so the caller must check `converged`."""
        X, y, weights = self.shard(X, y, weights)
        return fit_path(
            X, y, Cs, sample_weight=None if (weights == 1).all() else weights, standardize=protocol.standardize,
            tol=protocol.tol, max_iter=protocol.max_iter, backend=self.backend, device=self.device,
            dtype=None if self.dtype == "auto" else self.dtype, rows_dealt=self.sharded, warn=False,
        )  # fmt: skip

    def shard(self, X: Any, y: np.ndarray, weights: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """This rank's share of rows; all of them where rows are not sharded."""
        if not self.sharded:
            return X, y, weights
        own = np.arange(len(y))[current_ranks().part(0, len(y))]
        return X[own], y[own], weights[own]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of what the ranks computed of their shares."""
        return np.sum(current_ranks().gather(values), axis=0) if self.sharded else values

    def agree(self, value: Any) -> Any:
        """Rank 0's value on all ranks: a last bit that differs must not let them choose differently."""
        return current_ranks().once(lambda: value) if self.sharded else value


def make_settings(backend: str, device: str, dtype: str, parallel: str = "layers") -> FitSettings:
    """The settings of a sweep; with `parallel` "rows" the processes started by torchrun share the rows of every fit."""
    if parallel not in ("layers", "rows"):
        raise UserError(f"parallel may be layers or rows, but {parallel} was given.")
    if parallel == "layers":
        return FitSettings(backend, device, dtype)
    if backend != "torch" or current_ranks().size == 1:
        raise UserError(
            "parallel is rows, which needs the torch backend and several processes: start with "
            "`torchrun --nproc-per-node N --no-python probekit ...`."
        )
    join_group(find_device(device))
    return FitSettings(backend, device, dtype, sharded=True)


@lru_cache
def _version(backend: str, device: str) -> str:
    # the solver is asked itself, so that the name in a key and the name in a fit cannot differ
    X = np.array([[-1.0], [0.0], [1.0], [2.0]], np.float32)
    return fit_path(X, np.array([0, 1, 0, 1]), [1.0], backend=backend, device=device).solver_version
