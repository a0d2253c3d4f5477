"""Probes that are no plain penalty path: bands and mixes of joined layers, ridge and neighbours of single ones.

Arrays in, a `Fit` out, chosen on the same held-out training rows as everything else. n rows, D columns, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probekit.choice import Choice, Solver, choose_C, judge, refit
from probekit.errors import UserError
from probekit.probes.banded import search_gammas, spread
from probekit.probes.layer_mix import fit_layer_mix
from probekit.probes.neighbours import KS, knn_proba
from probekit.probes.objective import C_to_l2
from probekit.probes.protocols import Protocol
from probekit.probes.ridge import fit_ridge
from probekit.training_rows import TrainingRows

SEARCH_PENALTIES = 9  # of the grid, evenly spaced, while gammas or mixes are compared


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished probe and how it was chosen: what a record says about it.

    Attributes
    ----------
    classes (K,); coef (R, D) and intercept (R,) on the columns as read (neighbours have no columns)
    choice, l2s : held-out figures and penalties of the grid; certificate : of the final fit; found : how it was found
    further : arrays of a probe that is more than coefficients, for its file
    """

    classes: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    choice: Choice
    certificate: dict[str, Any]
    train_accuracy: float
    l2s: np.ndarray
    found: dict[str, Any] | None = field(default=None)
    further: dict[str, np.ndarray] | None = field(default=None)


Method = Callable[[np.ndarray, Sequence[int], TrainingRows, Protocol, Solver], Fit]


def fit_linear(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """The plain path: C chosen on held-out rows, then refitted."""
    choice = choose_C(X, rows, protocol, solver)
    final = refit(X, rows, choice, protocol, solver)
    path = final.path
    return Fit(
        path.classes, path.coef[0], path.intercept[0], choice, final.certificate, final.train_accuracy, final.l2s
    )


def fit_bands(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """One penalty a layer: factors searched on a thinned grid of C, then the whole grid with the best factors.

    Columns are standardised (if the protocol says so) by all training rows at once, since bands must survive it.
    """
    Z, shift, scale = _standardised(X, rows, protocol)
    plain = protocol.with_(standardize=False)
    scout = plain.with_(Cs=_thin(protocol.Cs), refine=0)

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
    return _replaced(fit, coef, fit.intercept - coef @ shift, found)


def fit_mix(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """A softmax-weighted sum of layers: C chosen on a thinned grid, a mix learned for each."""
    if len(set(widths)) != 1:
        raise UserError(f"A mix needs layers of one width, but they have {', '.join(map(str, widths))} columns.")
    Z, shift, scale = _standardised(X, rows, protocol)
    Cs = np.array(_thin(protocol.Cs))
    selection, total = rows.selection(protocol.selection), 0.0
    figures = {name: np.zeros(len(Cs)) for name in ("accuracy", "log_loss", "n_iter", "grad_rel", "gap")}
    converged = np.ones(len(Cs), bool)

    def layers(which: np.ndarray) -> list[np.ndarray]:
        return np.split(Z[which], len(widths), axis=1)

    for fitted, held in rows.rounds(selection):
        total += rows.weights[held].sum()
        for i, C in enumerate(Cs):
            mix = fit_layer_mix(
                layers(fitted),
                rows.y[fitted],
                C,
                rows.weights[fitted],
                tol=protocol.tol,
                backend=solver.backend,
                device=solver.device,
            )
            mixed = np.einsum("l,lnd->nd", mix.weights, np.stack(layers(held)))
            correct, loss = judge(mix.path, mixed, rows.y[held], rows.weights[held])
            figures["accuracy"][i] += correct[0]
            figures["log_loss"][i] += loss[0]
            converged[i] &= mix.path.converged[0]
            for name, source in (("n_iter", "n_iter"), ("grad_rel", "grad_rel"), ("gap", "decrement_gap")):
                figures[name][i] = max(figures[name][i], mix.path.certificates[source][0])
    figures["accuracy"] /= total
    figures["log_loss"] /= total
    choice = _choice(Cs, figures, converged, selection)
    use = _final_rows(rows, protocol)
    mix = fit_layer_mix(
        layers(use),
        rows.y[use],
        choice.C,
        rows.weights[use],
        tol=protocol.tol,
        backend=solver.backend,
        device=solver.device,
    )
    mixed = np.einsum("l,lnd->nd", mix.weights, np.stack(layers(use)))
    correct, _ = judge(mix.path, mixed, rows.y[use], rows.weights[use])
    coef, c = mix.joined_coef() / scale, mix.path.certificates
    certificate = {
        "converged": bool(mix.path.converged[0]), "n_iter": int(c["n_iter"][0]), "grad_rel": float(c["grad_rel"][0]),
        "gap": float(c["decrement_gap"][0]), "stop_reason": str(c["stop_reason"][0]), "mix_gradient": mix.mix_gradient,
    }  # fmt: skip
    found = {"rule": "softmax mix of layers", "weights": mix.weights.tolist()}
    weight = float(rows.weights[use].sum())
    intercept = mix.path.intercept[0] - coef @ shift
    return Fit(
        mix.path.classes, coef, intercept, choice, certificate, float(correct[0] / weight), C_to_l2(Cs, weight), found
    )


def fit_by_ridge(X: np.ndarray, widths: Sequence[int], rows: TrainingRows, protocol: Protocol, solver: Solver) -> Fit:
    """Ridge to one-hot targets over the protocol's Cs, all from one decomposition a round. Exact by construction."""
    Z, shift, scale = _standardised(X, rows, protocol)
    classes, columns = np.unique(rows.y, return_inverse=True)
    Cs, selection = np.array(protocol.Cs), rows.selection(protocol.selection)
    figures, total = {name: np.zeros(len(Cs)) for name in ("accuracy", "log_loss", "n_iter", "grad_rel", "gap")}, 0.0
    for fitted, held in rows.rounds(selection):
        coef, intercept = fit_ridge(Z[fitted], columns[fitted], Cs, rows.weights[fitted])
        scores = np.einsum("nd,ckd->cnk", Z[held].astype(np.float64), coef, optimize=True) + intercept[:, None]
        _tally(figures, scores - _logsumexp(scores), columns[held], rows.weights[held])
        total += rows.weights[held].sum()
    choice = _choice(Cs, _shares(figures, total), np.ones(len(Cs), bool), selection)
    use = _final_rows(rows, protocol)
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
    ks, selection = np.array(KS, float), rows.selection(protocol.selection)
    figures, total = {name: np.zeros(len(ks)) for name in ("accuracy", "log_loss", "n_iter", "grad_rel", "gap")}, 0.0
    for fitted, held in rows.rounds(selection):
        proba = knn_proba(X[fitted], columns[fitted], X[held], KS, sample_weight=rows.weights[fitted])
        _tally(figures, np.log(np.maximum(proba, 1e-12)), columns[held], rows.weights[held])
        total += rows.weights[held].sum()
    choice = _choice(ks, _shares(figures, total), np.ones(len(ks), bool), selection)
    choice = Choice(**{**vars(choice), "at_grid_edge": False})  # numbers of neighbours need no wider grid
    rule = {"rule": f"{int(choice.C)} nearest neighbours", "k": int(choice.C)}
    accuracy = float(choice.accuracy[choice.index])  # a row is its own nearest neighbour, so the held-out figure it is
    return Fit(classes, np.zeros((len(classes), 0)), np.zeros(len(classes)), choice, _EXACT, accuracy, 0 * ks, rule)


METHODS: dict[str, Method] = {
    "": fit_linear, "banded": fit_bands, "mix": fit_mix, "ridge": fit_by_ridge, "knn": fit_neighbours,
}  # fmt: skip

_EXACT = {"converged": True, "n_iter": 0, "grad_rel": 0.0, "gap": 0.0, "stop_reason": "closed form"}


def _thin(Cs: Sequence[float]) -> list[float]:
    return list(Cs[:: max(1, -(-(len(Cs) - 1) // (SEARCH_PENALTIES - 1)))])


def _final_rows(rows: TrainingRows, protocol: Protocol) -> np.ndarray:
    return ~rows.is_val if protocol.refit == "train" else np.ones(len(rows.y), bool)


def _standardised(X: np.ndarray, rows: TrainingRows, protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X by the mean and deviation of the training rows (float32), with the two; constant columns keep scale 1."""
    if not protocol.standardize:
        return X, np.zeros(X.shape[1]), np.ones(X.shape[1])
    share = rows.weights / rows.weights.sum()
    mean = share @ X.astype(np.float64)
    deviation = np.sqrt(np.maximum(share @ np.square(X - mean), 0.0))
    scale = np.where(deviation > 1e-12 * np.maximum(np.abs(mean), 1e-30), deviation, 1.0)
    return ((X - mean) / scale).astype(np.float32), mean, scale


def _tally(figures: dict[str, np.ndarray], log_proba: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> None:
    figures["accuracy"] += (log_proba.argmax(axis=2) == columns) @ weights
    figures["log_loss"] -= log_proba[:, np.arange(len(columns)), columns] @ weights


def _shares(figures: dict[str, np.ndarray], total: float) -> dict[str, np.ndarray]:
    return figures | {name: figures[name] / total for name in ("accuracy", "log_loss")}


def _choice(Cs: np.ndarray, figures: dict[str, np.ndarray], converged: np.ndarray, selection: str) -> Choice:
    choice = Choice(Cs=Cs, **figures, converged=converged, selection=selection, at_grid_edge=False)
    edge = len(Cs) > 1 and choice.index in (0, len(Cs) - 1)
    return Choice(**{**vars(choice), "at_grid_edge": edge})


def _logsumexp(scores: np.ndarray) -> np.ndarray:
    top = scores.max(axis=-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))


def _replaced(fit: Fit, coef: np.ndarray, intercept: np.ndarray, found: dict[str, Any]) -> Fit:
    return Fit(**{**vars(fit), "coef": coef, "intercept": intercept, "found": found})
