"""Runs probe jobs on one feature file and records their results; `sweep` and `concat` both use it.

Work on a key has two phases. `choose`: read train and val, choose C, refit, write the probe and a choices.jsonl line.
`test`: read the test split, once, and write the record. Nothing is tested before every key of the call has been chosen.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from probekit.features.lazy_features import BLOCK_ROWS, StoredRows, fits
from probekit.probes.attentive_probe import (
    LEARNING_RATES,
    attentive_log_proba,
    attentive_part,
    fit_attention,
    token_widths,
)
from probekit.probes.knn import KS, knn_proba
from probekit.probes.probe import METHODS, Fit, subsample_grid
from probekit.probes.rankme import rankme
from probekit.results.journal import Journal, share_work
from probekit.results.metrics import mean_per_class_accuracy, top_k_accuracy, wilson_interval
from probekit.results.predictions import RowPredictions, load_probe, save_probe
from probekit.results.record import RESULTS_NAME, SCHEMA, Identity
from probekit.runtime.errors import UserError
from probekit.runtime.progress import FitProgress, Progress
from probekit.runtime.ranks import broadcast, current
from probekit.selection.choose_C import Solver, settle_protocol
from probekit.selection.folds import TrainingRows, training_rows
from probekit.solver.objective import log_probabilities, logits

SGD_VERSION = "sgd-2"


@dataclass(frozen=True)
class Job:
    """One probe to be made: which layers, which draw of the training rows, which of `probekit.probes.probe`."""

    layers: tuple[str, ...]
    seed: int = 0
    train_rows: int | None = None
    kind: str = "layer"
    candidates: dict[str, Any] | None = None
    method: str = ""


class Runner:
    """State of a sweep or concatenation: the store, where results go, and how probes are fitted.

    Parameters
    ----------
    store : FeatureStore, or the path of a feature file
    results_dir : folder of results.jsonl; None for the folder of the feature file
    protocol, Cs : see `probekit.selection.choose_C.settle_protocol`
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
        self._rounds: dict[tuple[int, int | None], int] = {}

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
        self.refuse_other_work(any(job.method == "attentive" for job in jobs))
        by_key = {self.identity(job).key: job for job in jobs}
        done = self.results.keys()
        open_keys = [key for key in by_key if key not in done]
        solver, finish = self.solver, None
        if progress:
            fit_progress = FitProgress(
                {key: self.n_fits(job) for key, job in by_key.items()}, by_key.keys() & done, progress
            )
            self.solver, finish = replace(solver, on_fit=fit_progress.count), fit_progress.finish
        try:
            self.share(self.choices, open_keys, lambda key: self.choose(by_key[key]), finish)
        finally:
            self.solver = solver
        if self.is_rank0:
            share_work(self.results, open_keys, self.test)
        if self.solver.sharded:
            broadcast(None)  # the others wait for the tests

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes: where rows are sharded over ranks, only rank 0."""
        return not self.solver.sharded or current().rank == 0

    def share(
        self,
        journal: Journal,
        keys: Sequence[str],
        work: Callable[[str], dict[str, Any]],
        progress: Callable[[set[str]], None] | None = None,
    ) -> None:
        """`share_work`; with rows sharded, all ranks work on each key together, and rank 0 has the journal."""
        if not self.solver.sharded:
            share_work(journal, keys, work, progress)
        elif self.is_rank0:
            share_work(journal, keys, lambda key: work(broadcast(key)), progress)
            broadcast(None)
        else:
            while (key := broadcast(None)) is not None:
                work(key)

    def n_fits(self, job: Job) -> int:
        """Fits that a job takes, for progress: penalties times rounds and a refit; of searched bands, the last path."""
        if job.method == "attentive":
            return len(LEARNING_RATES) + 1
        rows = self.rows(job)
        which = (job.seed, job.train_rows)
        if which not in self._rounds:
            self._rounds[which] = len(rows.rounds(rows.selection(self.protocol.selection)))
        grid = {"knn": len(KS), "mix": len(subsample_grid(self.protocol.Cs))}
        return self._rounds[which] * grid.get(job.method, len(self.protocol.Cs) + 2 * self.protocol.refine) + 1

    def refuse_other_work(self, attentive: bool = False) -> None:
        """Refuse a folder whose series of the same name was made otherwise, naming what differs.

        Attentive probes read a file of their own, all tokens of some layers, and are compared among themselves.
        """
        mine: dict[str, Any] = {
            "feature file": self.store.id,
            "dtype": self.solver.dtype,
            "backend": self.solver.backend,
            "solver": self.solver_version,
        }
        mine |= {f"protocol {k}": v for k, v in self.protocol.resolved().items() if k not in ("name", "source")}
        for line in [*self.results.lines(), *self.choices.lines()]:
            if line.get("series") != self.series or (line["kind"] == "attentive") != attentive:
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
        return self._checked(X, split, layers)

    def read_some(self, split: str, layers: Sequence[str], start: int, stop: int) -> np.ndarray:
        """The same of rows start to stop alone, the others left in the file."""
        parts = [self.store.stored(split, layer, slice(start, stop)) for layer in layers]
        X = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).astype(np.float32, copy=False)
        return self._checked(X, split, layers, start)

    def _checked(self, X: np.ndarray, split: str, layers: Sequence[str], first: int = 0) -> np.ndarray:
        if not np.isfinite(X.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
            if len(bad):
                raise UserError(
                    f"Layer {'+'.join(layers)} holds NaN or infinity in {len(bad)} rows of {split} "
                    f"(first: row {first + bad[0]}): extract the features again, in float32."
                )
        if self.protocol.normalize:
            X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        return X

    def depth(self, layer: str) -> int:
        """Index of a layer in its file; a file that holds some of the encoder's layers may say where they stand."""
        index = self.store.layers.index(layer)
        return int(self.store.encoder.get("depths", range(len(self.store.layers)))[index])

    def width(self, layers: Sequence[str]) -> int:
        """Columns of layers side by side."""
        return sum(self.store.widths[self.store.layers.index(layer)] for layer in layers)

    def training_features(self, job: Job, or_stored: bool = False) -> Any:
        """Features of the job's training rows (n, D); with `or_stored`, left in the file where memory is too small."""
        positions = self.rows(job).positions
        splits = tuple((s, len(self.store.labels(s))) for s in ("train", "val") if s in self.store.splits)
        sharded = or_stored and self.solver.sharded  # then each rank reads its share alone
        whole = sum(n for _, n in splits)
        if hasattr(self.store, "stored") and (sharded or not fits(whole, self.width(job.layers))):
            left = self.stored_features(job)
            if or_stored and (sharded or not fits(*left.shape)):
                return left
            if not fits(*left.shape):
                raise UserError(
                    f"{len(left):,} rows of layer {'+'.join(job.layers)} with {left.shape[1]:,} columns do not fit in "
                    f"memory, as {job.method or self.protocol.name} needs them: leave that out, or set train_rows."
                )
            return np.asarray(left)
        parts = [self.read(split, job.layers) for split, _ in splits]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined if len(positions) == len(joined) else joined[positions]

    def stored_features(self, job: Job) -> StoredRows:
        """The same, left in the file."""
        splits = tuple((s, len(self.store.labels(s))) for s in ("train", "val") if s in self.store.splits)
        positions, width = self.rows(job).positions, self.width(job.layers)
        return StoredRows(lambda s, start, stop: self.read_some(s, job.layers, start, stop), splits, positions, width)

    def choose(self, job: Job) -> dict[str, Any]:
        """Choose C, refit, write the probe; returns the line of choices.jsonl: the record without test metrics."""
        start = perf_counter()
        X = self.training_features(job, or_stored=not job.method)
        widths = [self.store.widths[self.store.layers.index(layer)] for layer in job.layers]
        if job.method == "attentive":
            widths = token_widths(self.store.encoder, X.shape[1])
        method = fit_attention if job.method == "attentive" else METHODS[job.method]
        fit = method(X, widths, self.rows(job), self.protocol, self.solver)
        return self.line(job, fit, X, start)

    def line(self, job: Job, fit: Fit, X: Any, start: float) -> dict[str, Any]:
        """Write a fitted probe of features X (n, D), begun at `start`; returns its line of choices.jsonl."""
        identity, choice = self.identity(job), fit.choice
        probe_file = f"probes/{identity.key}.safetensors"
        if self.is_rank0:
            save_probe(self.out / probe_file, fit.classes, fit.coef, fit.intercept, extra_arrays=fit.extra_arrays)
        candidates = job.candidates or ({"found_by": []} if fit.found else None)
        if candidates and fit.found:
            candidates = candidates | {"found_by": [*candidates["found_by"], fit.found]}
        return {
            "schema": SCHEMA,
            "key": identity.key,
            "identity": identity.to_dict(),
            "kind": job.kind,
            "series": self.series,
            "depth": self.depth(job.layers[0]) if len(job.layers) == 1 else None,
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
            "rankme": rankme(X) if job.kind == "layer" and self.is_rank0 else None,
            "plan": choice.plan.partition("; about")[0],  # how much was free at the time is no part of a result
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
        y, layers = self.store.labels("test"), line["identity"]["layers"]
        classes = probe["classes"]
        columns = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        if not np.array_equal(classes[columns], y):
            strange = y[classes[columns] != y][0]
            raise UserError(f"The test split holds label {strange}, which no training row has: split the rows anew.")
        if line["kind"] == "knn":
            log_proba = self._neighbours(line, self.read("test", layers))
        elif line["kind"] == "attentive":
            log_proba = attentive_log_proba(probe, self.read("test", layers), self.solver.device)
        elif hasattr(self.store, "stored") and not fits(len(y), self.width(layers)):
            blocks = (self.read_some("test", layers, at, at + BLOCK_ROWS) for at in range(0, len(y), BLOCK_ROWS))
            scores = np.concatenate([logits(X, probe["coef"], probe["intercept"]) for X in blocks])
            log_proba = log_probabilities(scores)
        else:
            log_proba = log_probabilities(logits(self.read("test", layers), probe["coef"], probe["intercept"]))
        predicted = log_proba.argmax(axis=1)
        rows = RowPredictions(self.store.row_ids("test"), y, classes[predicted], log_proba, classes)
        save_probe(path, classes, probe["coef"], probe["intercept"], rows, attentive_part(probe))
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
