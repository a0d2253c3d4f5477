"""Named probing protocols, each with the penalty convention of its source, resolved to scikit-learn's C.

Conversions (N rows, PEERS.md section 5): the summed-loss penalty lambda ||W||^2 of google-research/linear_eval is C = 1/(2 lambda); CLIP's and
DINOv2's C is scikit-learn's own; a mean-loss penalty l2/2 ||W||^2 is C = 1/(N l2); cyanure's lambda/N likewise lambda/2 ||W||^2 on the mean.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from igpt_model.hashing import hash_json
from probekit.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How a layer is probed, whole.

    Attributes
    ----------
    name : of the protocol
    Cs : penalties in scikit-learn's convention (the coarse grid, if `refine` > 0)
    standardize : scale features by training mean and deviation
    tol, max_iter : of the solver
    selection : "auto" (5-fold cross-validation below 20,000 training rows, else "val"), "val" or "cv5"
    refit : "train+val" or "train": the rows of the final fit, with the chosen C kept
    refine : halvings of the grid's spacing around the best C after the coarse grid (CLIP, linear_eval), 0 for none
    solver : "path" (exact) or "sgd" (`probes.sgd`)
    normalize : scale each row to unit length first (CLIP_benchmark's habit; off in all named ones but where stated)
    source : where the protocol comes from
    """

    name: str
    Cs: tuple[float, ...]
    standardize: bool = False
    tol: float = 1e-4
    max_iter: int = 2000
    selection: str = "auto"
    refit: str = "train+val"
    refine: int = 0
    solver: str = "path"
    normalize: bool = False
    source: str = ""

    def resolved(self) -> dict[str, Any]:
        """The protocol as JSON: what a record stores and `hash` identifies."""
        return asdict(self) | {"Cs": [float(C) for C in self.Cs]}

    @property
    def hash(self) -> str:
        """Identity of everything that changes a number; neither name nor source does."""
        return hash_json({key: value for key, value in self.resolved().items() if key not in ("name", "source")})

    def with_(self, **changes: Any) -> "Protocol":
        """A changed copy; unless renamed, the name says that it was changed."""
        if "Cs" in changes:
            changes["Cs"] = tuple(float(C) for C in changes["Cs"])
        return replace(self, **({"name": f"{self.name}*"} | changes))


def clip_lambda_to_C(lambdas: Any) -> np.ndarray:
    """CLIP reports lambda = 1/C of scikit-learn's lbfgs (paper, appendix A.3)."""
    return 1.0 / np.asarray(lambdas, np.float64)


def kornblith_lambda_to_C(lambdas: Any) -> np.ndarray:
    """linear_eval penalises lambda ||W||^2 (no half) on the summed loss, so C = 1/(2 lambda)."""
    return 0.5 / np.asarray(lambdas, np.float64)


def mean_l2_to_C(l2: Any, n_rows: int) -> np.ndarray:
    """elk (and cyanure): lambda/2 ||W||^2 on the mean loss of n_rows, so C = 1/(n_rows lambda)."""
    return 1.0 / (np.asarray(l2, np.float64) * n_rows)


def refine_grid(Cs: Any, best: int, step: int) -> tuple[float, ...]:
    """The two penalties half-way (in log C) between the best one and its neighbours, after `step` halvings of the grid's spacing."""
    log_Cs = np.log(np.asarray(Cs, np.float64))
    spacing = (log_Cs[-1] - log_Cs[0]) / (len(log_Cs) - 1) / 2**step
    return tuple(float(value) for value in np.exp([log_Cs[best] - spacing, log_Cs[best] + spacing]))


def _grid(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.sort(values))


_logspace: Callable[..., np.ndarray] = np.logspace

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("igpt", _grid(_logspace(-6, 5, 45)), standardize=True, source="probekit: DESIGN section 5"),
        Protocol("dinov2-45", _grid(_logspace(-6, 5, 45)), selection="val", source="facebookresearch/dinov2 log_regression.py"),
        Protocol(
            "clip-coarse-fine", _grid(clip_lambda_to_C(_logspace(-6, 6, 7))), selection="val", refine=4,
            source="CLIP paper, appendix A.3: lambda 1e-6 to 1e6, then 8 steps a decade",
        ),
        Protocol(
            "kornblith", _grid(kornblith_lambda_to_C(_logspace(-6, 6, 7))), selection="val", refine=4, max_iter=1000,
            source="google-research/linear_eval: 7 coarse lambdas, 4 halvings",
        ),
        Protocol("sgd-imagenet", (), selection="val", solver="sgd", source="iGPT paper and DINOv2 linear.py: momentum SGD, cosine"),
    )
}  # fmt: skip


def get_protocol(protocol: "str | Protocol") -> Protocol:
    """A protocol by name, or the one given.

    Raises
    ------
    UserError
        No protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is not known; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol]
