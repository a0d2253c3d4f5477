"""Ordinary public data as a reviewer varies them: toy sets with other columns, labels, weights, sizes and penalties."""

import warnings

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probekit import LinearProbe
from probekit.solver.path import fit_path
from tests.probekit.solver.hostile import TOL, Hostile, false_certificates
from tests.probekit.solver.reference import objective, optimum

TOYS = ["iris", "wine", "breast_cancer", "digits", "counts", "blobs", "moons", "one positive in ten thousand"]
CHANGES = [
    "equal columns",
    "scales",
    "order",
    "one-hot",
    "integers",
    "squares",
    "constants",
    "logarithms",
    "negated copies",
]
COEFFICIENTS, CLASSES = 150, 6  # for which the suite's own Newton takes less than a second


def toy(rng, name):
    """Features and labels of a set, at most 400 rows of it (or 10,001)."""
    if name == "one positive in ten thousand":
        return rng.normal(size=(10001, rng.integers(1, 5))), (np.arange(10001) == 0).astype(int)
    if name == "counts":  # words of documents: most are zero, a few are frequent
        K, D = int(rng.integers(2, 6)), int(rng.integers(5, 80))
        y = rng.integers(0, K, 300)
        return rng.poisson(rng.gamma(0.1, 2, (K, D))[y]).astype(float), y
    if name == "blobs":
        K = int(np.exp(rng.uniform(np.log(2), np.log(300))))
        return datasets.make_blobs(
            max(2 * K, 50), int(rng.integers(1, 6)), centers=K, cluster_std=rng.uniform(0.1, 5), random_state=0
        )
    if name == "moons":
        return datasets.make_moons(200, noise=rng.uniform(0, 0.5), random_state=0)
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    rows = rng.permutation(len(y))[:400]
    return (X[rows][:, rng.permutation(64)[: rng.integers(2, 25)]] if name == "digits" else X[rows]), y[rows]


def changed(rng, X, change):
    D = X.shape[1]
    if change == "equal columns":
        return np.hstack([X, X[:, rng.integers(0, D, 2)]])
    if change == "scales":
        return X * 10.0 ** rng.uniform(-6, 6, D)
    if change == "order":
        return X[:, rng.permutation(D)]
    if change == "one-hot":  # columns of each group sum to one
        bins = np.digitize(X[:, :3], np.quantile(X[:, :3], [0.25, 0.5, 0.75]))
        return np.hstack([X[:, 3:], *(np.eye(4)[column] for column in bins.T)])
    if change == "integers":
        return np.round(X * 10.0 ** rng.integers(-1, 5))
    if change == "squares":
        return np.hstack([X, X[:, :10] ** 2])
    if change == "constants":
        return np.hstack([X, np.full((len(X), 2), [0.0, 1e4])])
    if change == "logarithms":
        return np.log1p(np.abs(X))
    return np.hstack([X, -X[:, :2], X[:, :2] + 1e-7 * rng.normal(size=(len(X), min(D, 2)))])


def ordinary_problem(seed):
    rng = np.random.default_rng([seed, 15])
    name = str(rng.choice(TOYS, p=[0.15, 0.15, 0.15, 0.15, 0.13, 0.15, 0.08, 0.04]))
    X, y = toy(rng, name)
    changes = [str(change) for change in rng.choice(CHANGES, rng.integers(0, 4), replace=False)]
    for change in changes:
        X = changed(rng, X, change)
    if rng.random() < 0.25 and len(y) < 1000:  # tiny
        rows = rng.permutation(len(y))[: rng.integers(2, 12)]
        if len(np.unique(y[rows])) > 1:
            X, y = X[rows], y[rows]
    noise = rng.choice([0, 0, 0.1, 0.25, 0.5]) if len(y) < 1000 else 0.0
    noisy = np.where(rng.random(len(y)) < noise, rng.permutation(y), y)
    y = np.unique(noisy if len(np.unique(noisy)) > 1 else y, return_inverse=True)[1]
    weights = np.ones(len(y))
    weighting = str(rng.choice(["none", "none", "zeros", "uneven", "balanced"]))
    if weighting == "zeros":
        weights = (rng.random(len(y)) < 0.6).astype(float)
    elif weighting == "uneven":
        weights = 10.0 ** rng.uniform(-3, 3, len(y))
    elif weighting == "balanced":
        weights = 1 / np.bincount(y)[y]
    if len(np.unique(y[weights > 0])) < 2:
        weights = np.ones(len(y))
    Cs = 10.0 ** rng.uniform(-8, 8, rng.choice([1, 2, 3, 5]))
    near = rng.choice([1.0, 1 + 1e-15, 1 + 1e-9, 1.005], len(Cs))
    Cs = rng.permutation(np.concatenate([Cs, (Cs * near)[: rng.integers(0, 3)]]))
    settings = {"standardize": bool(rng.random() < 0.5), "dtype": [None, "float32", "float64"][rng.integers(3)]}
    if settings["dtype"] == "float32":
        X = X.astype(np.float32)
    what = " | ".join([name, *changes, f"noise {noise}", f"weights {weighting}", f"{X.shape}", str(settings)])
    return Hostile(X, X.astype(np.float64), y, weights, Cs, settings, what)


def least(X, y, weights, n_classes, l2):
    """The least objective that an independent solver finds: the suite's Newton, or scikit-learn's for many columns."""
    R = 1 if n_classes == 2 else n_classes
    if R * (X.shape[1] + 1) <= COEFFICIENTS and n_classes <= CLASSES and len(y) < 1000:
        return optimum(X, y, weights, n_classes, l2, 100)[0]
    share, N = weights / weights.sum(), len(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (l2 * N), solver="newton-cholesky", tol=1e-9, max_iter=60)
        present = np.unique(y[weights > 0])
        if len(present) < n_classes:  # scikit-learn counts classes without weight as others: no reference
            return np.inf
        model.fit(X, y, sample_weight=share * N)
    return objective(X, y, weights, model.coef_, model.intercept_, l2)[0]


def judge(seeds, alone=0.3):
    """`false_certificates` of these problems, and the `disagreements` of a share of them."""
    wrong, left_open = false_certificates(seeds, ordinary_problem, least)
    for seed in seeds:
        if np.random.default_rng(seed).random() < alone:
            wrong += disagreements(seed)
    return wrong, left_open


def disagreements(seed):
    """Sentences about penalties for which a path and a `LinearProbe` are both certified, but not of equal objective.

    Neither may have an objective of more than the other's and the tolerance.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        problem = ordinary_problem(seed)
        path = fit_path(problem.X, problem.y, problem.Cs, sample_weight=problem.weights, **problem.settings)
        probes = [LinearProbe(C=C, **problem.settings).fit(problem.X, problem.y, problem.weights) for C in problem.Cs]
    wrong = []
    for C, certified, loss, probe in zip(problem.Cs, path.converged, path.certificates["loss"], probes, strict=True):
        single = probe.certificate_["loss"]
        if certified and probe.converged_ and abs(np.log(loss / single)) > TOL + 1e-9:
            wrong.append(f"{seed}: C = {C:.3g}, path {loss}, single fit {single} | {problem.what}")
    return wrong
