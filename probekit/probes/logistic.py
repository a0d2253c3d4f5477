"""Multinomial logistic regression, C chosen on held-out rows, certified: plain, or with a penalty for each layer.

`1/2 sum_g ||W_g||^2 / gamma_g^2 + C sum_i ce_i`, with a penalty for each layer, is the plain problem on columns
multiplied by gamma_g, so every solver can solve it exactly; only the gammas need a search, on held-out rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from igpt_model.devices import to_device
from probekit.probes.probe import FittedLinear, Probe, standardized
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import Array, FitSettings, choose_C, score_path
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, subsample_grid
from probekit.solver.objective import C_to_l2
from probekit.solver.path import ProbePath


class LogisticProbe(Probe):
    """A path of penalties per round, then a refit with the chosen C and a new standardiser."""

    kind = "linear"
    streams = True
    shards = True

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        selection = choose_C(X, split, protocol, settings)
        use = split.final(protocol.refit)
        rows = (X[use], split.y[use], split.weights[use])
        path = settings.fit_path(rows[0], rows[1], [selection.chosen], rows[2], protocol)
        columns = np.searchsorted(path.classes, rows[1])
        correct = settings.sum(score_path(path, *settings.shard(rows[0], columns, rows[2]))[0])
        weight = float(rows[2].sum())
        return FittedLinear(
            classes=path.classes,
            coef=path.coef[0],
            intercept=path.intercept[0],
            selection=replace(selection, l2s=C_to_l2(selection.grid, weight)),
            certificate=certificate_of(path),
            train_accuracy=float(correct[0] / weight),
            device=settings.device,
        )


def certificate_of(path: ProbePath) -> dict[str, Any]:
    """The certificate of a final fit, from a path of one penalty; `kind` is the kind of bound of `gap`."""
    names = ("n_iter", "grad_rel", "gap", "kind", "stop_reason")
    return {"converged": bool(path.converged[0])} | {name: path.certificates[name][0].item() for name in names}


class BandedProbe(Probe):
    """One penalty per layer: factors searched on a subsampled grid of C, then the whole grid with the best factors.

    If the protocol standardises, columns are standardised by all training rows at once, so the factors keep their
    meaning in every fold.
    """

    kind = "banded"
    reads = "layers"

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        Z, shift, scale = standardized(X, split, protocol, settings.device)
        plain = protocol.with_(standardize=False)
        coarse = plain.with_(Cs=subsample_grid(protocol.Cs), refine=0)

        def scaled(gammas: Sequence[float]) -> torch.Tensor:
            return Z * to_device(spread(gammas, widths), Z.device, Z.dtype)

        steps = search_gammas(len(widths), lambda gammas: choose_C(scaled(gammas), split, coarse, settings).score)
        gammas = steps[-1][0]
        fitted = LogisticProbe().fit(scaled(gammas), widths, split, plain, settings)
        assert fitted.selection is not None
        coef = fitted.coef * spread(gammas, widths) / scale
        info = {
            "rule": "one penalty a layer",
            "gammas": list(gammas),
            "C_by_layer": [fitted.selection.chosen * gamma**2 for gamma in gammas],
            "steps": [{"gammas": list(g), "score": value} for g, value in steps],
        }
        return replace(fitted, coef=coef, intercept=fitted.intercept - coef @ shift, search_info=info)


def spread(gammas: Sequence[float], widths: Sequence[int]) -> Array:
    """The factor of every column (sum of widths,), given the factor of every band."""
    if len(gammas) != len(widths) or not all(0 <= gamma < np.inf for gamma in gammas):
        raise UserError(f"gammas are {list(gammas)}; give {len(widths)} finite non-negative factors, one per band.")
    return np.repeat(np.asarray(gammas, np.float64), widths)


def search_gammas(n_bands: int, score: Callable[[tuple[float, ...]], float]) -> list[tuple[tuple[float, ...], float]]:
    """Search for the factors of the bands by a held-out score, one band at a time, first in coarse, then in fine steps.

    Parameters
    ----------
    score : held-out score of the gammas, never the test split's; it may choose C anew each time

    Returns
    -------
    list of (gammas, score)
        The start with equal factors and every step that improved the score.
    """
    steps = [((1.0,) * n_bands, score((1.0,) * n_bands))]
    for factor in (4.0, 2.0):  # per step size, cycle through the bands until none improves
        gained = True
        while gained:
            gained = False
            for band in range(n_bands):
                for change in (factor, 1 / factor):
                    trial = tuple(g * change if i == band else g for i, g in enumerate(steps[-1][0]))
                    if max(trial) / min(trial) > 2**10:  # a band with a factor this small has no effect
                        continue
                    if (value := score(trial)) > steps[-1][1]:
                        steps.append((trial, value))
                        gained = True
                        break
    return steps
