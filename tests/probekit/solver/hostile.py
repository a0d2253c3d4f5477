"""Random problems of odd structure, size and storage, and false certificates of their fits, judged in long doubles."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from probekit.solver.path import fit_path
from tests.probekit.solver.reference import objective, optimum

TOL = 1e-4
CHANGES = ["none", "columns", "subnormal", "offset", "one long row", "integers", "equal columns", "rank one"]
STORAGE = ["C", "F", "strided", "reversed", "read-only", "memmap", "float16", "float32", "int64", "uint64"]


@dataclass
class Hostile:
    """X (N, D) as stored, its values (N, D) float64, labels (N,), weights (N,), penalties and `fit_path`'s settings."""

    X: Any
    values: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    Cs: np.ndarray
    settings: dict
    what: str


def labels_of(rng, N):
    kind = rng.choice(["few", "own class", "one positive", "contradicting", "pairs"])
    if kind == "own class":
        return np.arange(N), kind
    if kind == "one positive":
        return (np.arange(N) == 0).astype(int), kind
    if kind == "pairs":  # two rows a class
        return np.arange(N) // 2 if N > 3 else np.arange(N), kind
    K = int(rng.integers(2, min(N, 8) + 1))
    return np.concatenate([np.arange(K), rng.integers(0, K, N - K)]), kind


def values_of(rng, N, D, y, kind):
    X = rng.normal(size=(N, D)) + rng.uniform(0, 3) * rng.normal(size=(y.max() + 1, D))[y]
    what = [kind]
    if kind == "contradicting":
        X = X[np.arange(N) % max(N // 3, 1)]  # each row several times, with other labels
    change = rng.choice(CHANGES)
    if change == "columns":
        X = X * 10.0 ** rng.uniform(-20, 20, D)
    elif change == "subnormal":
        X = X * 10.0 ** rng.choice([-310.0, -318.0, -44.0, -39.0])
    elif change == "offset":
        X = X + 10.0 ** rng.uniform(6, 12) * rng.choice([-1, 1], D)
    elif change == "one long row":
        X[rng.integers(N)] *= 10.0 ** rng.uniform(3, 9)
    elif change == "integers":
        X = (X * 2.0**56).clip(-(2.0**62), 2.0**62)
    elif change == "equal columns":
        X[:, :] = X[:, :1] * (1 + 1e-9 * np.arange(D))
    elif change == "rank one":
        X = np.outer(X[:, 0], rng.normal(size=D)) * 10.0 ** rng.uniform(-3, 3)
    return X, [*what, str(change)]


def stored(rng, X, folder):
    """X in some storage, and its values."""
    kind = str(rng.choice(STORAGE))
    with np.errstate(all="ignore"):
        narrow = {"float16": np.float16, "float32": np.float32}.get(kind, np.float64)
        values = X.astype(narrow)
    if kind in ("int64", "uint64") and np.abs(X).max() > 1e3:
        low, high = (-(2.0**63), 2.0**63 - 1024) if kind == "int64" else (0.0, 2.0**64 - 2048)
        values = np.round(X).clip(low, high).astype(kind)
        if kind == "int64":
            values[0, 0] = 2**63 - 1
    if not np.isfinite(values.astype(np.float64)).all():
        values, kind = X.copy(), "C"
    if kind == "F":
        values = np.asfortranarray(values)
    elif kind == "strided":
        wide = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan)
        wide[::2, 1::3] = values
        values = wide[::2, 1::3]
    elif kind == "reversed":
        values = np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1]
    elif kind == "read-only":
        values.setflags(write=False)
    elif kind == "memmap":
        path = Path(folder, "X.npy")
        np.save(path, values)
        values = np.load(path, mmap_mode="r")
    return values, np.array(values, np.float64), kind


def hostile_problem(seed, folder):
    rng = np.random.default_rng([seed, 77])
    N = int(np.exp(rng.uniform(np.log(3), np.log(150))))
    y, kind = labels_of(rng, N)
    K = int(y.max()) + 1
    D = max(1, min(int(np.exp(rng.uniform(0, np.log(2 * N)))), 300 // K))
    X, what = values_of(rng, N, D, y, kind)
    X, values, storage = stored(rng, X, folder)
    weights = np.ones(N)
    weighting = rng.choice(["none", "class of zero", "huge", "tiny", "integers"])
    if weighting == "class of zero" and K > 2:
        weights[y == rng.integers(K)] = 0.0
    elif weighting in ("huge", "tiny"):
        weights = rng.uniform(0.5, 2, N) * 10.0 ** (80 if weighting == "huge" else -80)
    elif weighting == "integers":
        weights = rng.integers(0, 3, N) + 0.0
        weights[:2] = 1.0
        if len(np.unique(y[weights > 0])) < 2:
            weights[:] = 1.0
    Cs = 10.0 ** rng.uniform(-6, 5, rng.choice([1, 1, 2, 4, 7]))
    Cs = np.concatenate([Cs, Cs[: len(Cs) // 2]]) / weights.sum() * N  # some twice, in no order
    settings = {"standardize": bool(rng.random() < 0.5), "dtype": [None, "float32", "float64"][rng.integers(3)]}
    return Hostile(X, values, y, weights, Cs, settings, " | ".join([*what, storage, str(weighting), str(settings)]))


def newton(X, y, weights, n_classes, l2):
    return optimum(X, y, weights, n_classes, l2, 100)[0]


def verdicts(problem, least):
    """For each penalty: (converged, relative gap to the `least` objective known, claimed gap)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        path = fit_path(problem.X, problem.y, problem.Cs, sample_weight=problem.weights, **problem.settings)
    share = problem.weights / problem.weights.sum()
    X = problem.values.astype(np.longdouble)
    mean = share.astype(np.longdouble) @ X
    spread = np.sqrt(share.astype(np.longdouble) @ np.square(X - mean))
    scale = np.ones(X.shape[1], np.longdouble)
    if problem.settings["standardize"]:
        scale = np.where(spread <= np.maximum(10 * 2.3e-16 * np.abs(mean), 1e-150), 1, spread)
    centred = ((X - mean) / scale).astype(np.float64)
    out = []
    for i, l2 in enumerate(path.l2s):
        best = least(centred, problem.y, problem.weights, len(path.classes), l2)
        coef, intercept = path.coef[i].astype(np.longdouble), path.intercept[i].astype(np.longdouble)
        loss = objective(X, problem.y, problem.weights, coef, intercept, 0.0)[0]
        ours = loss + l2 / 2 * np.sum(np.square(coef * scale))
        out.append((bool(path.converged[i]), float(ours / best - 1), float(path.certificates["gap"][i])))
    return out


def judge(seeds):
    """`false_certificates` of these problems."""
    with TemporaryDirectory() as folder:
        return false_certificates(seeds, lambda seed: hostile_problem(seed, folder))


def false_certificates(seeds, make, least=newton):
    """Sentences about fits whose certificate is false, and the share of fits left open; `make` has a seed's problem."""
    wrong, left_open, fits = [], 0, 0
    with np.errstate(all="ignore"):
        for seed in seeds:
            problem = make(seed)
            for C, (converged, gap, claimed) in zip(problem.Cs, verdicts(problem, least), strict=True):
                fits, left_open = fits + 1, left_open + (not converged)
                # 1e-9: the rounding of the reference
                if converged and not gap <= TOL + 1e-9:
                    wrong.append(f"{seed}: C = {C:.3g}, gap {gap:.2e}, claimed {claimed:.2e} | {problem.what}")
    return wrong, left_open / fits
