"""No fit gets stuck: scikit-learn's toy sets, raw and as random features, with wrong labels, in both precisions."""

import warnings
from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning

from probekit.solver.path import fit_path

IGPT = np.logspace(-6, 5, 45)
LOADERS = {"digits": load_digits, "wine": load_wine, "iris": load_iris, "breast_cancer": load_breast_cancer}


@cache
def data(name):
    """X, y of a toy set; "faces": 40 classes of 10 smooth pictures; "relu NAME": random ReLU features of one."""
    kind, _, source = name.rpartition(" ")
    if kind:
        X, y = data(source)
        X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9)
        weights = np.random.default_rng(7).normal(size=(X.shape[1], 200)) / np.sqrt(X.shape[1])
        return np.maximum(X @ weights, 0), y
    if name != "faces":
        return LOADERS[name](return_X_y=True)
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(60, 576)), axis=1) / 24  # few directions, as pictures of faces have
    y = np.repeat(np.arange(40), 10)
    return 0.5 + 0.1 * (rng.normal(size=(40, 60))[y] + 0.5 * rng.normal(size=(400, 60))) @ smooth, y


def certified(name, noise, dtype, standardize):
    """Whether each of the 45 penalties is certified, and the path."""
    X, y = data(name)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(y)) < noise
    y = np.where(wrong, rng.integers(0, y.max() + 1, len(y)), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit_path(X.astype(dtype), y, IGPT, standardize=standardize, dtype=dtype)


@pytest.mark.parametrize("noise", [0, 0.25])
@pytest.mark.parametrize(("name", "dtype"), [("digits", "float64"), ("wine", "float32"), ("relu iris", "float64")])
def test_every_penalty_is_certified(name, noise, dtype):
    path = certified(name, noise, dtype, standardize=True)
    assert path.converged.all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("noise", [0, 0.07, 0.25])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", [f"{kind}{name}" for name in [*LOADERS, "faces"] for kind in ("", "relu ")])
def test_convergence_matrix(name, noise, dtype, standardize):
    path = certified(name, noise, dtype, standardize)
    assert path.converged.all(), path.Cs[~path.converged]


def test_near_duplicate_penalties():
    """Penalties an ulp apart are one node, not two points of an interpolation."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 8))
    y = np.argmax(X @ rng.normal(size=(8, 4)) + rng.normal(size=(300, 4)), axis=1)
    for C in 1.0 + np.arange(8) / 7:
        ulps = 1 + 2e-16 * np.arange(3)
        path = fit_path(X, y, np.concatenate([C * ulps, 5.8 * C * ulps]))
        assert path.converged.all()
        # certified to 1e-4 each
        np.testing.assert_allclose(path.certificates["loss"][:3], path.certificates["loss"][0], rtol=1e-4)


def test_one_weak_penalty_costs_no_more_than_a_path_to_it():
    """Started from zero by a Kronecker product, this fit takes 24 times the passes of 25 penalties that end at it."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1500)
    latent = rng.normal(size=(10, 24))[y] + 1.5 * rng.normal(size=(1500, 24))
    X = np.maximum(latent @ rng.normal(size=(24, 64)) / 5 + rng.normal(size=64), 0)
    alone = fit_path(X, y, [1e4], standardize=True)
    path = fit_path(X, y, np.logspace(-6, 4, 25), standardize=True)
    assert alone.converged.all()
    assert alone.certificates["n_iter"].sum() <= 2 * path.certificates["n_iter"].sum()
