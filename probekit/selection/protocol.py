"""Named probing protocols, with the penalty conventions of their sources converted to scikit-learn's C.

The conversions, with N the sum of the sample weights and C in `1/2 ||W||^2 + C sum_i ce_i`:

| source | its objective | C |
|---|---|---|
| scikit-learn, CLIP, DINOv2 | 1/2 W^2 + C sum ce; CLIP reports lambda = 1/C | C |
| google-research/linear_eval | lambda W^2 + sum ce | 1/(2 lambda); two classes: 1/lambda |
| elk, torch SGD's weight decay on W | lambda/2 W^2 + mean ce | 1/(N lambda) |
| cyanure | lambda/(2 N) W^2 + mean ce, as PEERS.md reads it (lambda/N) | 1/lambda |
| UNI, NeuroX | the norm of W, not squared | none: another objective |
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from igpt_model.hashing import hash_json
from igpt_model.ranges import COUNT, COUNT_OR_NONE, POSITIVE, SEED, SHARE, WEIGHT, Range, check_settings
from probekit.runtime.errors import UserError, did_you_mean, explained


def _number(default: Any, allowed: Range) -> Any:
    return field(default=default, metadata={"range": allowed})


@dataclass(frozen=True)
class SGDConfig:
    """How `probes.sgd` trains a grid of learning rates.

    Attributes
    ----------
    learning_rates : the grid (30, 10, 3, ... in the paper); each decays to zero along a cosine
    epochs, batch_size : passes over the rows and rows per step, which the paper does not state
    momentum : 0.9 in the paper
    weight_decay : applied to the weights but not the intercepts; equals scikit-learn's C = 1/(N weight_decay)
    seed : seed of the order of rows
    """

    learning_rates: tuple[float, ...] = _number((30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003), POSITIVE)
    epochs: int = _number(30, COUNT)
    batch_size: int = _number(256, COUNT)
    momentum: float = _number(0.9, SHARE)
    weight_decay: float = _number(0.0, WEIGHT)
    seed: int = _number(0, SEED)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.learning_rates:
            raise UserError("learning_rates is empty; give one or more positive numbers.")


@dataclass(frozen=True)
class Protocol:
    """Complete description of how a layer is probed.

    Attributes
    ----------
    name : of the protocol
    Cs : penalties in scikit-learn's convention (the coarse grid, if `refine` > 0)
    standardize : standardise features by the training mean and standard deviation
    tol, max_iter : of the solver
    selection : "auto" (5-fold cross-validation below 20,000 training rows, else "val"), "val" or "cv5"
    refit : "train+val" or "train": the rows of the final fit, with the chosen C kept
    refine : halvings of the grid's spacing around the best C after the coarse grid (CLIP, linear_eval), 0 for none
    solver : "path" (exact) or "sgd" (`probes.sgd`; then `sgd` says how, and learning rates take the place of Cs)
    normalize : scale each row to unit length first (as CLIP_benchmark does; off unless stated)
    source : the paper or code the protocol is from
    """

    name: str
    Cs: tuple[float, ...]
    standardize: bool = False
    tol: float = 1e-4
    max_iter: int = 2000
    selection: Literal["auto", "val", "cv5"] = "auto"
    refit: Literal["train+val", "train"] = "train+val"
    refine: int = _number(0, COUNT_OR_NONE)
    solver: str = "path"
    normalize: bool = False
    source: str = ""
    sgd: SGDConfig | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def __repr__(self) -> str:
        grid = grid_words(self.Cs) if self.sgd is None else f"{len(self.sgd.learning_rates)} learning rates"
        return f"Protocol({self.name!r}: {grid}{', standardized' * self.standardize})"

    def resolved(self) -> dict[str, Any]:
        """The protocol as JSON: what a record stores and `hash` identifies."""
        resolved = asdict(self) | {"Cs": [float(C) for C in self.Cs]}
        if self.sgd is None:
            del resolved["sgd"]  # leave out `sgd`, so that exact protocols keep the hash from before SGD was added
        else:
            resolved["sgd"]["learning_rates"] = list(self.sgd.learning_rates)
        return resolved

    @property
    def probe(self) -> str:
        """The kind of probe (a name in `PROBES`) of this protocol's depth curve."""
        return "linear" if self.solver == "path" else self.solver

    @property
    def hash(self) -> str:
        """Hash of every setting that affects results, so not of name and source."""
        return hash_json({key: value for key, value in self.resolved().items() if key not in ("name", "source")})

    def with_(self, **changes: Any) -> "Protocol":
        """A copy with changes, marked in its name unless that is changed too."""
        if "Cs" in changes:
            refused = UserError(f"Cs is {changes['Cs']!r}; give positive numbers such as [0.01, 0.1, 1].")
            # float would take the characters of a text, and the real part of NumPy's complex numbers
            try:
                given = tuple(changes["Cs"])
                if isinstance(changes["Cs"], str | bytes) or any(isinstance(C, np.complexfloating) for C in given):
                    raise refused
                changes["Cs"] = tuple(map(float, given))
            except (TypeError, ValueError, RuntimeError, OverflowError):
                raise refused from None
        return replace(self, **({"name": f"{self.name}*"} | changes))


def kornblith_lambda_to_C(lambdas: Any, n_classes: int = 3) -> np.ndarray:
    """linear_eval penalises lambda ||W||^2 (no half) on the summed loss, so C = 1/(2 lambda).

    For two classes it has two rows of weights, which converge to -w/2 and w/2 of the sigmoid row w, so C = 1/lambda.
    """
    return (1.0 if n_classes == 2 else 0.5) / np.asarray(lambdas, np.float64)


def grid_words(Cs: Sequence[float]) -> str:
    """A grid of penalties in a few words: "45 C from 1e-06 to 1e+05", or "C = 1"."""
    if len(Cs) < 2:
        return f"C = {Cs[0]:g}" if Cs else "no C"
    return f"{len(Cs)} C from {min(Cs):g} to {max(Cs):g}"


def refine_grid(Cs: Any, best: int, step: int) -> tuple[float, ...]:
    """The two penalties next to the best one, at the grid's spacing in log C halved `step` times."""
    log_Cs = np.log(np.asarray(Cs, np.float64))
    spacing = (log_Cs[-1] - log_Cs[0]) / (len(log_Cs) - 1) / 2**step
    return tuple(np.exp([log_Cs[best] - spacing, log_Cs[best] + spacing]).tolist())


SEARCH_PENALTIES = 9  # number of evenly spaced penalties used to compare gammas, mixes or sets of layers


def subsample_grid(Cs: Sequence[float]) -> tuple[float, ...]:
    """About `SEARCH_PENALTIES` evenly spaced values of a grid, including its first."""
    return tuple(Cs[:: max(1, -(-(len(Cs) - 1) // (SEARCH_PENALTIES - 1)))])


_DECADES = np.logspace(-6, 6, 7)  # CLIP's and linear_eval's coarse lambdas
_GRID_45 = tuple(np.logspace(-6, 5, 45).tolist())

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("igpt", _GRID_45, standardize=True, source="probekit: DESIGN section 5"),
        Protocol("dinov2-45", _GRID_45, selection="val", source="facebookresearch/dinov2 log_regression.py"),
        Protocol(
            "clip-coarse-fine",
            tuple(np.sort(1 / _DECADES).tolist()),
            selection="val",
            refine=4,
            source="CLIP paper, appendix A.3: lambda 1e-6 to 1e6, then 8 steps a decade",
        ),
        Protocol(
            "kornblith",
            tuple(np.sort(kornblith_lambda_to_C(_DECADES)).tolist()),
            selection="val",
            refine=4,
            max_iter=1000,
            source="google-research/linear_eval: 7 coarse lambdas, 4 halvings",
        ),
        Protocol(
            "sgd-imagenet",
            (),
            selection="val",
            refit="train",
            solver="sgd",
            sgd=SGDConfig(),
            source="iGPT paper (momentum 0.9, learning rates 30, 10, 3, ..., cosine); one pass, as DINOv2 linear.py",
        ),
    )
}


def get_protocol(protocol: "str | Protocol") -> Protocol:
    """A protocol by name, or the given one; `UserError` for an unknown name."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        hint = did_you_mean(protocol, PROTOCOLS)
        raise UserError(f"Unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.{hint}")
    return PROTOCOLS[protocol]


def resolve_protocol(protocol: str | Protocol, Cs: Any = None) -> Protocol:
    """A protocol by name or value, with `Cs`, sorted, as its penalties; `UserError` for what a sweep cannot run."""
    resolved = get_protocol(protocol)
    if resolved.sgd is not None:
        if Cs is not None:
            what = f"Protocol {resolved.name} trains by SGD with its own learning rates"
            raise UserError(f"{what}; omit Cs.")
        return resolved
    if Cs is not None:
        kinds = (TypeError, ValueError, OverflowError)
        with explained("Cs are no numbers", "give one or more positive ones", *kinds):
            values = np.asarray(Cs, np.float64)
        resolved = resolved.with_(Cs=np.unique(np.atleast_1d(values)))
    bad = [C for C in resolved.Cs if not (np.isfinite(C) and C > 0)]
    if bad or not resolved.Cs:
        raise UserError(f"C is {bad[0] if bad else 'an empty list'}; give positive numbers.")
    return resolved
