"""Probes that are no plain penalty path: bands and mixes of joined layers, ridge and neighbours of single ones.

Arrays in, a `Fit` out, chosen on the same held-out training rows as everything else. n rows, D columns, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import log_softmax

from probekit.probes.banded import search_gammas, spread
from probekit.probes.knn import KS, knn_proba
from probekit.probes.layer_mix import LayerMix, fit_layer_mix
from probekit.probes.ridge import fit_ridge
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import (
    Choice,
    Solver,
    certificate_of,
    choose_C,
    final_rows,
    grid_ends,
    refit,
    score_path,
)
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.solver.inputs import standardizer
from probekit.solver.objective import C_to_l2, log_probabilities

SEARCH_PENALTIES = 9  # of the grid, evenly spaced, while gammas, mixes or sets of layers are compared


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished probe and how it was chosen: what a record says about it.

    Attributes
    ----------
    classes (K,); coef (R, D) and intercept (R,) on the columns as read (neighbours have no columns)
    choice, l2s : held-out figures and penalties of the grid; certificate : of the final fit; found : how it was found
    extra_arrays : arrays of a probe that is more than coefficients, for its file
    """

    classes: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    choice: Choice
    certificate: dict[str, Any]
    train_accuracy: float
    l2s: np.ndarray
    found: dict[str, Any] | None = field(default=None)
    extra_arrays: dict[str, np.ndarray] | None = field(default=None)


Method = Callable[[np.ndarray, Sequence[int], TrainingRows, Protocol, Solver], Fit]


def fit_linear(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """The plain path: C chosen on held-out rows, then refitted."""
    choice = choose_C(X, rows, protocol, solver)
    path, accuracy, l2s = refit(X, rows, choice, protocol, solver)
    return Fit(path.classes, path.coef[0], path.intercept[0], choice, certificate_of(path), accuracy, l2s)


def fit_bands(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """One penalty a layer: factors searched on a thinned grid of C, then the whole grid with the best factors.

    Columns are standardised (if the protocol says so) by all training rows at once, since bands must survive it.
    """
    Z, shift, scale = _standardised(X, rows, protocol)
    plain = protocol.with_(standardize=False)
    scout = plain.with_(Cs=subsample_grid(protocol.Cs), refine=0)

    def scaled(gammas: Sequence[float]) -> np.ndarray:
        return Z * spread(gammas, widths).astype(Z.dtype)

    steps = search_gammas(len(widths), lambda gammas: choose_C(scaled(gammas), rows, scout, solver).score)
    gammas = steps[-1][0]
    fit = fit_linear(scaled(gammas), widths, rows, plain, solver)
    coef = fit.coef * spread(gammas, widths) / scale
    found = {
        "rule": "one penalty a layer",
        "gammas": list(gammas),
        "C_by_layer": [fit.choice.C * gamma**2 for gamma in gammas],
        "steps": [{"gammas": list(g), "score": value} for g, value in steps],
    }
    return replace(fit, coef=coef, intercept=fit.intercept - coef @ shift, found=found)


def fit_mix(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """A softmax-weighted sum of layers: C chosen on a thinned grid, a mix learned for each."""
    if len(set(widths)) != 1:
        raise UserError(f"A mix needs layers of one width, but they have {', '.join(map(str, widths))} columns.")
    Z, shift, scale = _standardised(X, rows, protocol)
    Cs = np.array(subsample_grid(protocol.Cs))
    settings: dict[str, Any] = {"tol": protocol.tol, "backend": solver.backend, "device": solver.device}

    def learned(which: np.ndarray, C: float) -> LayerMix:
        return fit_layer_mix(np.split(Z[which], len(widths), axis=1), rows.y[which], C, rows.weights[which], **settings)

    def mixed(mix: LayerMix, which: np.ndarray) -> np.ndarray:
        return np.einsum("l,lnd->nd", mix.weights, np.stack(np.split(Z[which], len(widths), axis=1)))

    def predict_log_proba(fitted: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        mixes = [learned(fitted, C) for C in Cs]
        scores = np.stack([mix.path.decision_function(mixed(mix, held))[0] for mix in mixes])
        certificates = [certificate_of(mix.path) for mix in mixes]
        facts = {name: np.array([c[name] for c in certificates]) for name in ("converged", "n_iter", "grad_rel", "gap")}
        return log_probabilities(scores), facts

    choice = _choose(Cs, rows, protocol, predict_log_proba)
    use = final_rows(rows, protocol)
    mix = learned(use, choice.C)
    weight = float(rows.weights[use].sum())
    accuracy = float(score_path(mix.path, mixed(mix, use), rows.y[use], rows.weights[use])[0][0] / weight)
    coef = mix.joined_coef() / scale
    found = {"rule": "softmax mix of layers", "weights": mix.weights.tolist()}
    certificate = certificate_of(mix.path) | {"mix_gradient": mix.mix_gradient}
    intercept = mix.path.intercept[0] - coef @ shift
    return Fit(mix.path.classes, coef, intercept, choice, certificate, accuracy, C_to_l2(Cs, weight), found)


def fit_by_ridge(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """Ridge to one-hot targets over the protocol's Cs, all from one decomposition a round. Exact by construction."""
    Z, shift, scale = _standardised(X, rows, protocol)
    classes, columns = np.unique(rows.y, return_inverse=True)
    Cs = np.array(protocol.Cs)

    def predict_log_proba(fitted: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        coef, intercept = fit_ridge(Z[fitted], columns[fitted], Cs, rows.weights[fitted])
        scores = np.einsum("nd,ckd->cnk", Z[held].astype(np.float64), coef, optimize=True) + intercept[:, None]
        return log_softmax(scores, axis=-1), {}

    choice = _choose(Cs, rows, protocol, predict_log_proba)
    use = final_rows(rows, protocol)
    coef, intercept = fit_ridge(Z[use], columns[use], [choice.C], rows.weights[use])
    right = (Z[use] @ coef[0].T + intercept[0]).argmax(axis=1) == columns[use]
    raw, weight = coef[0] / scale, float(rows.weights[use].sum())
    if len(classes) == 2:  # one row, as every two-class probe of the house has
        raw, intercept = raw[1:] - raw[:1], intercept[:, 1:] - intercept[:, :1]
    accuracy = float(right @ rows.weights[use] / weight)
    return Fit(
        classes, raw, intercept[0] - raw @ shift, choice, _EXACT, accuracy, C_to_l2(Cs, weight), {"rule": "ridge"}
    )


def fit_neighbours(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """k nearest neighbours; the number of neighbours takes the place of C in the record."""
    classes, columns = np.unique(rows.y, return_inverse=True)
    ks = np.array(KS, float)

    def predict_log_proba(fitted: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        proba = knn_proba(X[fitted], columns[fitted], X[held], KS, sample_weight=rows.weights[fitted])
        return np.log(np.maximum(proba, 1e-12)), {}

    # numbers of neighbours need no wider grid
    choice = replace(_choose(ks, rows, protocol, predict_log_proba), grid_ends=None)
    rule = {"rule": f"{int(choice.C)} nearest neighbours", "k": int(choice.C)}
    accuracy = float(choice.accuracy[choice.index])  # a row is its own nearest neighbour, so the held-out figure it is
    return Fit(classes, np.zeros((len(classes), 0)), np.zeros(len(classes)), choice, _EXACT, accuracy, 0 * ks, rule)


METHODS: dict[str, Method] = {
    "": fit_linear, "banded": fit_bands, "mix": fit_mix, "ridge": fit_by_ridge, "knn": fit_neighbours,
}  # fmt: skip

_EXACT = {"converged": True, "n_iter": 0, "grad_rel": 0.0, "gap": 0.0, "stop_reason": "closed form"}


def subsample_grid(Cs: Sequence[float]) -> list[float]:
    """About `SEARCH_PENALTIES` of a grid, evenly spaced, its first among them."""
    return list(Cs[:: max(1, -(-(len(Cs) - 1) // (SEARCH_PENALTIES - 1)))])


def _choose(
    grid: np.ndarray,
    rows: TrainingRows,
    protocol: Protocol,
    predict_log_proba: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, Any]]],
) -> Choice:
    """Choose of a grid by what `predict_log_proba(rows to fit, rows held out)` gives in every round.

    That is, for every value of the grid, logarithms of class probabilities (n_C, held, K) and what certifies the fits.
    """
    selection = rows.selection(protocol.selection)
    columns = np.unique(rows.y, return_inverse=True)[1]
    correct, loss, total = np.zeros(len(grid)), np.zeros(len(grid)), 0.0
    worst: dict[str, Any] = {}
    for fitted, held in rows.rounds(selection):
        log_proba, facts = predict_log_proba(fitted, held)
        y, weights = columns[held], rows.weights[held]
        correct += (log_proba.argmax(axis=2) == y) @ weights
        loss -= log_proba[:, np.arange(len(y)), y] @ weights
        total += weights.sum()
        for name, values in facts.items():
            together = np.logical_and if name == "converged" else np.maximum
            worst[name] = together(worst.get(name, values), values)
    return Choice.from_figures(grid, correct / total, loss / total, selection, grid_ends=grid_ends(grid), **worst)


def _standardised(X: np.ndarray, rows: TrainingRows, protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X by the mean and deviation of the training rows (float32), with the two; constant columns keep scale 1."""
    if not protocol.standardize:
        return X, np.zeros(X.shape[1]), np.ones(X.shape[1])
    mean, scale = standardizer(X, rows.weights)
    return ((X - mean) / scale).astype(np.float32), mean, scale
