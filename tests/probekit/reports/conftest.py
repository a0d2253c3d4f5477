"""A results folder as a sweep leaves it, made up but consistent: model, random weights, pixels, concatenated layers."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest

from igpt_model.hashing import hash_json
from probekit.reports.panels import build_panels, collect_records
from probekit.results.predictions import RowPredictions, save_probe

TRAINED = (0.295, 0.389, 0.514, 0.606, 0.634, 0.728, 0.733, 0.746, 0.773, 0.752, 0.705)
RANDOM = (0.295, 0.31, 0.33, 0.34, 0.345, 0.35, 0.345, 0.34, 0.335, 0.33, 0.33)
PIXELS = (0.381,)
CS = np.logspace(-6, 5, 12)
N_TEST = 897
N_CLASSES = 10


def predictions(rng, labels, shared, accuracy):
    """Right on the rows with the smallest noisy difficulty: layers err on similar rows, as real ones do."""
    difficulty = shared + 0.35 * rng.standard_normal(len(labels))
    right = difficulty <= np.quantile(difficulty, accuracy)
    wrong = (labels + rng.integers(1, N_CLASSES, len(labels))) % N_CLASSES
    return np.where(right, labels, wrong)


def make_record(folder, series, layers, accuracy, rng, shared, labels, *, kind="layer", depth=None, **changes):
    """Append one record in the contract's schema, with its probe file."""
    identity = {
        "feature_id": f"{changes.pop('feature_id', 'feat')}-{series}",
        "layers": layers,
        "protocol_hash": changes.pop("protocol_hash", "9f2c71d0aa"),
        "split_hash": changes.pop("split_hash", "77aa01"),
        "subset_hash": "full",
        "seed": changes.pop("seed", 0),
        "dtype": "float32",
        "backend": "torch",
        "solver_version": "1",
    }
    key = hash_json(identity)
    predicted = predictions(rng, labels, shared, accuracy)
    top1 = float((predicted == labels).mean())
    interval = binomtest(int((predicted == labels).sum()), len(labels)).proportion_ci(method="wilson")
    log_C = np.log10(CS)
    best = 0.5 + 0.5 * (accuracy - 0.5)
    val = accuracy - 0.012 * (log_C - best) ** 2 + 0.01 * rng.standard_normal(len(CS))
    val = np.clip(val, 0.1, 1.0)
    n_iter = np.clip(10 ** (0.25 * (log_C + 6)) * rng.uniform(0.8, 1.2, len(CS)), 1, 2000).astype(int)
    converged = changes.pop("converged", [bool(n < 500) for n in n_iter])
    chosen = int(np.argmax(np.where(converged, val, -1)))
    refit_converged = changes.pop("refit_converged", True)
    record = {
        "schema": 1,
        "key": key,
        "identity": identity,
        "kind": kind,
        "series": series,
        "depth": depth,
        "n_layers": changes.pop("n_layers", len(TRAINED)),
        "width": 48 * len(layers),
        "encoder": {"name": series, "weights_hash": f"w-{series}", "norm": True, "pooling": "mean"},
        "dataset": {"name": "wandering-digits", "classes": [str(k) for k in range(N_CLASSES)]},
        "protocol": {"name": "igpt", "standardize": True, "tol": 1e-4, "max_iter": 2000},
        "feature_file": f"features/{series}.h5",
        "Cs": CS.tolist(),
        "l2s": (1 / (CS * 810)).tolist(),
        "val_accuracy": val.tolist(),
        "val_log_loss": (-np.log(val)).tolist(),
        "n_iter": n_iter.tolist(),
        "converged": converged,
        "grad_rel": (1e-4 * rng.uniform(0.1, 1, len(CS))).tolist(),
        "gap": (1e-5 * rng.uniform(0.1, 1, len(CS))).tolist(),
        "selection": "val",
        "chosen_index": chosen,
        "chosen_C": float(CS[chosen]),
        "at_grid_edge": changes.pop("at_grid_edge", False),
        "refit": {
            "converged": refit_converged,
            "n_iter": int(n_iter[chosen]),
            "grad_rel": 5e-5,
            "gap": 4e-5 if refit_converged else 3e-2,
            "stop_reason": "gap" if refit_converged else "max_iter",
        },
        "train_accuracy": min(1.0, accuracy + 0.1),
        "metrics": {
            "top1": top1,
            "top5": min(1.0, top1 + 0.2),
            "mean_per_class": top1 - 0.002,
            "log_loss": -np.log(top1),
            "n_test": len(labels),
            "top1_low": interval.low,
            "top1_high": interval.high,
        },
        "probe_file": f"probes/{key}.safetensors",
        "seconds": 1.2,
        "created": "2026-11-23T23:50:00Z",
        "versions": {"probekit": "0.1.0", "torch": "2.13.0", "numpy": np.__version__},
    }
    record.update(changes)
    classes = np.arange(N_CLASSES)
    log_proba = np.log(np.where(predicted[:, None] == classes, 0.82, 0.02)).astype(np.float32)
    rows = RowPredictions(np.arange(len(labels)), labels, predicted, log_proba, classes)
    save_probe(folder / record["probe_file"], {"classes": classes}, rows)
    with open(folder / "results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def fill_run(folder, *, unconverged=(3,), series="igpt", trained=TRAINED, n_test=N_TEST, probes=True, **changes):
    """Write a whole run into `folder`; returns it. `unconverged`: depths of the model whose refit did not converge."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, N_CLASSES, n_test)
    shared = rng.standard_normal(n_test)

    def add(name, layers, accuracy, **own):
        make_record(folder, name, layers, accuracy, rng, shared, labels, **(changes | own))

    for depth, accuracy in enumerate(trained):
        found = {"refit_converged": depth not in unconverged, "n_layers": len(trained)}
        add(series, [f"{depth:02d}"], accuracy, depth=depth, **found)
    for depth, accuracy in enumerate(RANDOM):
        add("random", [f"{depth:02d}"], accuracy, depth=depth, n_layers=len(RANDOM))
    add("pixels", ["00"], PIXELS[0], depth=0, n_layers=1)
    for layers, accuracy in (
        (["07", "08"], 0.784),
        (["06", "07", "08"], 0.792),
        (["06", "07", "08", "09", "10"], 0.789),
    ):
        add(series, layers, accuracy, kind="concat", n_layers=len(trained))
    if not probes:
        shutil.rmtree(folder / "probes")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Results of one made-up run, read only."""
    return fill_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def panel(run_folder):
    """The only panel of `run_folder`."""
    (only,) = build_panels(collect_records(run_folder))
    return only


@pytest.fixture
def make_run(tmp_path):
    """A function that writes another run, different as asked, and returns its folder."""
    return lambda **changes: fill_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **changes)


@pytest.fixture
def make_panel(make_run):
    """A function that writes another run, different as asked, and returns its only panel."""

    def made(**changes):
        (only,) = build_panels(collect_records(make_run(**changes)))
        return only

    return made
