"""Commands run in this process, and a feature file for them."""

import contextlib
import io

import numpy as np

from probekit.cli.main import main
from probekit.features.store import FeatureStore


def run(words):
    """Exit code and output of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        return main(words), printed.getvalue()


def run_all(*lines):
    """Run command lines in turn; each has to succeed."""
    for line in lines:
        code, printed = run(line.split())
        assert code == 0, printed


def write_features(path, shifts, classes=3, dataset="noise"):
    """A feature file of clouds of points, a layer a shift between the classes."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 60), ("val", 15), ("test", 30)):
        y = np.arange(n) % classes
        splits[split] = ([(rng.normal(size=(n, 4)) + s * np.eye(4)[y]).astype(np.float32) for s in shifts], y)
    FeatureStore.from_arrays(path, splits, encoder={"name": "made"}, dataset={"name": dataset})
    return path
