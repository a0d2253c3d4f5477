"""Base classes of probes: a kind of probe, and a fitted probe, which predicts probabilities and is stored as arrays.

A new kind is a subclass of `Probe` with a new `kind`; runner, records and tables find it in `PROBES`. N rows, D
columns, R coefficient rows (1 for two classes, else K), K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from igpt_model.devices import to_device
from probekit.runtime.errors import UserError, explained
from probekit.selection.choose_C import FitSettings, HeldOut, Selection, cross_validate
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.solver.inputs import standardizer
from probekit.solver.objective import log_probabilities


class _Kinds(dict[str, type["Probe"]]):
    """Kinds of probes by name; `UserError` for unknown ones, because a record may come from another installation."""

    def __missing__(self, name: str) -> type["Probe"]:
        raise UserError(f"Unknown kind of probe {name[:100]!r}; choose one of {', '.join(self)}.")


PROBES: dict[str, type["Probe"]] = _Kinds()
MOST_COLUMNS = 1 << 24  # seed of the row that a loaded probe is tested on
EXACT = {"converged": True, "n_iter": 0, "grad_rel": 0.0, "gap": 0.0, "stop_reason": "closed form"}

ReadRows = Callable[[np.ndarray], np.ndarray]  # positions in train and val concatenated -> their features
FitAndScore = Callable[[np.ndarray, np.ndarray, np.ndarray], HeldOut]  # (grid, rows to fit, rows held out)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedProbe(ABC):
    """A fitted probe; `selection`, `certificate` and `train_accuracy` are not stored in its file.

    Fields added by a subclass are arrays, which its file stores.

    Attributes
    ----------
    classes : (K,) labels in column order
    selection : how the value of the grid was chosen
    certificate : of the final fit: converged, n_iter, grad_rel, gap, stop_reason
    train_accuracy : accuracy on the rows of the final fit
    search_info : JSON about the choice of the probe that `selection` does not contain
    device : device of predictions
    """

    classes: np.ndarray
    selection: Selection | None = None
    certificate: Mapping[str, Any] = field(default_factory=dict)
    train_accuracy: float = float("nan")
    search_info: Mapping[str, Any] | None = None
    device: str = "cpu"

    @abstractmethod
    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        """Logarithms of class probabilities (N, K) of features (N, D) as they were read."""

    @classmethod
    def stored(cls) -> list[str]:
        """Names of the fields stored in its file."""
        return [f.name for f in fields(cls) if f.name == "classes" or f not in fields(FittedProbe)]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `from_arrays` needs."""
        return {name: getattr(self, name) for name in self.stored()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], read_rows: ReadRows, device: str = "cpu") -> Self:
        """Create the probe from its arrays; `read_rows` reads training features by position."""
        own: dict[str, Any] = {name: arrays[name] for name in cls.stored()}
        return cls(**own, device=device)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedLinear(FittedProbe):
    """Coefficients (R, D) and intercepts (R,) on the columns as read."""

    coef: np.ndarray
    intercept: np.ndarray

    def __repr__(self) -> str:
        return f"FittedLinear({len(self.classes)} classes, {self.coef.shape[1]} features)"

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        rows, coef, intercept = (to_device(values, self.device).double() for values in (X, self.coef, self.intercept))
        return log_probabilities(rows @ coef.mT + intercept).cpu().numpy()


class Probe(ABC):
    """A kind of probe. Defining a subclass with a `kind` adds it to `PROBES`.

    Attributes
    ----------
    kind : its name
    reads : "layer" (the matrix of one layer or of several concatenated), "layers" (several layers, separated by their
        widths) or "tokens" (features of every token of a layer)
    tunes : the quantity in the grid: "C", "k" or "lr"
    fitted : the class of its fitted probes
    streams : accepts features that are read from their file by slices
    shards : can be fitted by several processes, each with some of the rows
    """

    kind: ClassVar[str]
    reads: ClassVar[Literal["layer", "layers", "tokens"]] = "layer"
    tunes: ClassVar[Literal["C", "k", "lr"]] = "C"
    fitted: ClassVar[type[FittedProbe]] = FittedLinear
    streams: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            PROBES[cls.kind] = cls

    def grid(self, protocol: Protocol) -> Sequence[float]:
        """The values that `fit` chooses from."""
        return protocol.Cs

    def check(self, protocol: Protocol) -> None:
        """Raise `UserError` if the probe cannot be fitted under a protocol."""
        if not self.grid(protocol):
            raise UserError(f"A {self.kind} probe needs penalties, but protocol {protocol.name} has none.")

    def version(self, settings: FitSettings) -> str:
        """Version of the code that computes the fit; part of a record's key."""
        return settings.version

    def n_fits(self, split: TrainingRows, protocol: Protocol) -> int:
        """Number of fits of one probe, for progress: the grid in every round, and the final fit."""
        rounds = split.n_rounds(split.resolve_rule(protocol.selection))
        return rounds * (len(self.grid(protocol)) + 2 * protocol.refine) + 1

    @abstractmethod
    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedProbe:
        """Choose on held-out rows, then fit on the protocol's final rows.

        Parameters
        ----------
        X : (N, D) features of the rows of `split`: an array, or on a GPU a tensor there
        widths : columns of each layer in X, or of each token
        split : labels, weights and rounds
        """

    def cross_validate(
        self, split: TrainingRows, protocol: Protocol, settings: FitSettings, fit_and_score: FitAndScore
    ) -> tuple[Selection, np.ndarray]:
        """Held-out scores of the grid, and the positions of the rows of the final fit."""
        rule = split.resolve_rule(protocol.selection)
        selection = cross_validate(self.grid(protocol), split.rounds(rule), fit_and_score, rule, settings.on_fit)
        return selection, split.final(protocol.refit)


def restore(
    kind: str, arrays: Mapping[str, np.ndarray], width: int, read_rows: ReadRows, device: str, where: Any
) -> FittedProbe:
    """The fitted probe of a kind from the arrays of the file `where`.

    Unless it reads tokens, it is tested on a row of `width` columns, so that arrays of wrong shapes raise here.
    """
    problem = f"Probe file {where} is not of kind {kind} with {width} columns"
    kinds = (KeyError, IndexError, ValueError, TypeError, RuntimeError)
    with explained(problem, "delete its record's line and run the sweep again", *kinds):
        fitted = PROBES[kind].fitted.from_arrays(arrays, read_rows, device)
        if PROBES[kind].reads != "tokens":
            proba = fitted.predict_log_proba(np.ones((1, min(width, MOST_COLUMNS)), np.float32))
            if proba.shape != (1, len(fitted.classes)):
                raise ValueError(f"its probabilities have shape {proba.shape} for {len(fitted.classes)} classes")
    return fitted


def standardized(X: Any, split: TrainingRows, protocol: Protocol, device: str) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """X standardised by the training rows, float32 on the device, with their mean and standard deviation.

    Constant columns keep scale 1. X unchanged, with zeros and ones, if the protocol does not standardise.
    """
    rows = to_device(X, device)
    if not protocol.standardize:
        return rows, np.zeros(X.shape[1]), np.ones(X.shape[1])
    mean, scale = standardizer(rows, split.weights)
    return ((rows - to_device(mean, device)) / to_device(scale, device)).float(), mean, scale
