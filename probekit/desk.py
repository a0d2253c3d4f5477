"""The desk where probes are made: one feature file, one protocol, one results folder; sweep and concat both work at it.

Work on a key has two phases. `choose`: read train and val, choose C, refit, write the probe and a choices.jsonl line.
`test`: read the test split, once, and write the record. Nothing is tested before every key of the call has been chosen.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from probekit.choice import Solver, settle_protocol
from probekit.errors import UserError
from probekit.methods import METHODS, Fit
from probekit.probes.neighbours import knn_proba
from probekit.probes.objective import log_probabilities, logits
from probekit.probes.rank import rankme
from probekit.results.journal import Journal, share_work
from probekit.results.metrics import mean_per_class_accuracy, top_k_accuracy, wilson_interval
from probekit.results.records import RESULTS_NAME, SCHEMA, Identity
from probekit.results.rows import RowPredictions, load_probe, save_probe
from probekit.training_rows import TrainingRows, training_rows

SGD_VERSION = "sgd-1"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One probe to be made: which layers, which draw of the training rows, which of `probekit.methods`."""

    layers: tuple[str, ...]
    seed: int = 0
    train_rows: int | None = None
    kind: str = "layer"
    candidates: dict[str, Any] | None = None
    method: str = ""


class Desk:
    """State of a sweep or concatenation: the store, where results go, and how probes are fitted.

    Parameters
    ----------
    store : FeatureStore, or the path of a feature file
    results_dir : folder of results.jsonl; None for the folder of the feature file
    protocol, Cs : see `probekit.choice.settle_protocol`
    series : name of the curve; None for the encoder's own name
    solver : backend, device, dtype
    """

    def __init__(self, store: Any, results_dir: Any, protocol: Any, Cs: Any, series: str | None, solver: Solver):
        if isinstance(store, str | Path):
            from probekit.features.store import FeatureStore

            store = FeatureStore.open(store)
        self.store = store
        self.out = Path(results_dir if results_dir is not None else Path(store.path).parent)
        self.protocol = settle_protocol(protocol, Cs)
        self.series = series or str(store.encoder.get("name", "encoder"))
        self.solver = solver
        self._rows: dict[tuple[int, int | None], TrainingRows] = {}

    @cached_property
    def choices(self) -> Journal:
        return Journal(self.out / "choices.jsonl")

    @cached_property
    def results(self) -> Journal:
        return Journal(self.out / RESULTS_NAME)

    @property
    def solver_version(self) -> str:
        """Of whatever makes the protocol's probes."""
        return SGD_VERSION if self.protocol.solver == "sgd" else self.solver.version

    def rows(self, job: Job) -> TrainingRows:
        """The job's training rows (kept: all layers share them)."""
        which = (job.seed, job.train_rows)
        if which not in self._rows:
            self._rows[which] = training_rows(self.store, *which)
        return self._rows[which]

    def identity(self, job: Job) -> Identity:
        """What the job's numbers depend on."""
        rows = self.rows(job)
        return Identity(
            feature_id=self.store.id,
            layers=job.layers,
            protocol_hash=self.protocol.hash,
            split_hash=rows.split_hash,
            subset_hash=rows.subset_hash,
            seed=job.seed,
            dtype=self.solver.dtype,
            backend=self.solver.backend,
            solver_version=self.solver_version,
            method=job.method,
        )

    def run(self, jobs: Sequence[Job], progress: Progress | None = None) -> None:
        """Have a record of every job in results.jsonl: every choice first, then the tests; other workers share in."""
        self.refuse_other_work()
        by_key = {self.identity(job).key: job for job in jobs}
        done = self.results.keys()
        open_keys = [key for key in by_key if key not in done]
        finished = len(by_key) - len(open_keys)
        shown = (lambda n, _: progress(finished + n, len(by_key))) if progress else None
        share_work(self.choices, open_keys, lambda key: self.choose(by_key[key]), shown)
        share_work(self.results, open_keys, lambda key: self.test(key))

    def refuse_other_work(self) -> None:
        """Refuse a folder whose series of the same name was made otherwise, naming what differs."""
        mine: dict[str, Any] = {
            "feature file": self.store.id,
            "dtype": self.solver.dtype,
            "backend": self.solver.backend,
            "solver": self.solver_version,
        }
        mine |= {f"protocol {k}": v for k, v in self.protocol.resolved().items() if k not in ("name", "source")}
        for line in [*self.results.lines(), *self.choices.lines()]:
            if line.get("series") != self.series:
                continue
            identity = line["identity"]
            theirs: dict[str, Any] = {
                "feature file": identity["feature_id"],
                "dtype": identity["dtype"],
                "backend": identity["backend"],
                "solver": identity["solver_version"],
            }
            theirs |= {f"protocol {k}": line["protocol"].get(k) for k in self.protocol.resolved()}
            differing = [name for name, value in mine.items() if theirs[name] != value]
            if differing:
                listed = "; ".join(
                    f"{name}: {_short(theirs[name])} there, {_short(mine[name])} here" for name in differing
                )
                raise UserError(
                    f"{self.results.path} holds series {self.series!r} made otherwise ({listed}): "
                    "use the same settings, another series name or another output folder."
                )

    def read(self, split: str, layers: Sequence[str]) -> np.ndarray:
        """Features of a split (N, D), finite, rows at unit length if the protocol says so; without a test label."""
        X = self.store.read(split, layers[0])[0] if len(layers) == 1 else self.store.read_many(split, layers)[0]
        if not np.isfinite(X.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
            if len(bad):
                raise UserError(
                    f"Layer {'+'.join(layers)} holds NaN or infinity in {len(bad)} rows of {split} "
                    f"(first: row {bad[0]}): extract the features again, in float32."
                )
        if self.protocol.normalize:
            X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        return X

    def training_features(self, job: Job) -> np.ndarray:
        """Features of the job's training rows (n, D)."""
        parts = [self.read(split, job.layers) for split in ("train", "val") if split in self.store.splits]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        positions = self.rows(job).positions
        return joined if len(positions) == len(joined) else joined[positions]

    def choose(self, job: Job) -> dict[str, Any]:
        """Choose C, refit, write the probe; returns the line of choices.jsonl: the record without test metrics."""
        start = perf_counter()
        X = self.training_features(job)
        widths = [self.store.widths[self.store.layers.index(layer)] for layer in job.layers]
        fit = METHODS[job.method](X, widths, self.rows(job), self.protocol, self.solver)
        return self.line(job, fit, X, start)

    def line(self, job: Job, fit: Fit, X: np.ndarray, start: float) -> dict[str, Any]:
        """Write a fitted probe of features X (n, D), begun at `start`; returns its line of choices.jsonl."""
        identity, choice = self.identity(job), fit.choice
        probe_file = f"probes/{identity.key}.safetensors"
        save_probe(self.out / probe_file, fit.classes, fit.coef, fit.intercept)
        candidates = job.candidates or ({"found_by": []} if fit.found else None)
        if candidates and fit.found:
            candidates = candidates | {"found_by": [*candidates["found_by"], fit.found]}
        return {
            "schema": SCHEMA,
            "key": identity.key,
            "identity": identity.to_dict(),
            "kind": job.kind,
            "series": self.series,
            "depth": self.store.layers.index(job.layers[0]) if len(job.layers) == 1 else None,
            "n_layers": len(self.store.layers),
            "width": X.shape[1],
            "encoder": dict(self.store.encoder),
            "dataset": dict(self.store.dataset),
            "protocol": self.protocol.resolved(),
            "feature_file": self._feature_file(),
            "Cs": choice.Cs.tolist(),
            "l2s": fit.l2s.tolist(),
            "val_accuracy": choice.accuracy.tolist(),
            "val_log_loss": choice.log_loss.tolist(),
            "n_iter": choice.n_iter.astype(int).tolist(),
            "converged": choice.converged.tolist(),
            "grad_rel": choice.grad_rel.tolist(),
            "gap": choice.gap.tolist(),
            "selection": choice.selection,
            "chosen_index": choice.index,
            "chosen_C": choice.C,
            "at_grid_edge": choice.at_grid_edge,
            "refit": fit.certificate,
            "train_accuracy": fit.train_accuracy,
            "probe_file": probe_file,
            "train_rows": job.train_rows,
            "candidates": candidates,
            "rankme": rankme(X) if job.kind == "layer" else None,
            "seconds": round(perf_counter() - start, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }

    def test(self, key: str) -> dict[str, Any]:
        """Read the test split for a chosen probe; writes its per-row file and returns the record's line."""
        start = perf_counter()
        line = next(line for line in self.choices.lines() if line["key"] == key)
        path = self.out / line["probe_file"]
        probe = load_probe(path)
        X, y = self.read("test", line["identity"]["layers"]), self.store.labels("test")
        classes = probe["classes"]
        columns = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        if not np.array_equal(classes[columns], y):
            strange = y[classes[columns] != y][0]
            raise UserError(f"The test split holds label {strange}, which no training row has: split the rows anew.")
        if line["kind"] == "knn":
            log_proba = self._neighbours(line, X)
        else:
            log_proba = log_probabilities(logits(X, probe["coef"], probe["intercept"]))
        predicted = log_proba.argmax(axis=1)
        rows = RowPredictions(self.store.row_ids("test"), y, classes[predicted], log_proba, classes)
        save_probe(path, classes, probe["coef"], probe["intercept"], rows)
        low, high = wilson_interval(int(rows.correct.sum()), len(y))
        metrics = {
            "top1": float(rows.correct.mean()),
            "top5": top_k_accuracy(log_proba, columns, 5) if len(classes) > 5 else None,
            "mean_per_class": mean_per_class_accuracy(rows.correct, y),
            "log_loss": float(-log_proba[np.arange(len(y)), columns].mean()),
            "n_test": len(y),
            "top1_low": low,
            "top1_high": high,
        }
        return line | {"metrics": metrics, "seconds": round(line["seconds"] + perf_counter() - start, 3)}

    def _neighbours(self, line: dict[str, Any], X: np.ndarray) -> np.ndarray:
        """Logarithms of the votes for test features (N, K); neighbours have no coefficients, they read train again."""
        job = Job(tuple(line["identity"]["layers"]), line["identity"]["seed"], line["train_rows"])
        rows = self.rows(job)
        columns = np.unique(rows.y, return_inverse=True)[1]
        votes = knn_proba(self.training_features(job), columns, X, [int(line["chosen_C"])], sample_weight=rows.weights)
        return np.log(np.maximum(votes[0], 1e-12))

    def _feature_file(self) -> str:
        path = getattr(self.store, "path", None)
        return Path(os.path.relpath(path, self.out)).as_posix() if path else ""


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} values {value[0]:.3g} to {value[-1]:.3g}" if value else "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("igpt-probekit", "torch", "numpy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source"
    return found
