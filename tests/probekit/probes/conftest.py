"""Labelled rows that several probes are tried on."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rows():
    """Features (60, 5), labels of three classes, and weights of 0, 1 or 2."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    X = rng.normal(size=(60, 5)) + np.eye(5)[y]
    return X, y, rng.integers(0, 3, 60).astype(float)
