"""Runs probe jobs on one feature file and records their results; `sweep` and `concat` both use it.

A job has two phases. `choose` reads train and val, chooses the penalty, fits, and writes the probe and a line of
choices.jsonl. `test` reads the test split once and writes the record. Testing starts after all choices of the call.
"""

import os
import platform
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning

from igpt_model.checked_json import Text, check_json
from igpt_model.devices import find_device, to_device
from igpt_model.differences import differ
from igpt_model.hashing import hash_arrays
from igpt_model.process_group import current_ranks
from igpt_model.ranges import SEED, SEEDS, check_range
from probekit.datasets.splits import random_bits, stratified_holdout, stratified_subset
from probekit.features.inspect import rankme
from probekit.features.lazy_features import BLOCK_ROWS, fits, read_features, training_features
from probekit.features.readable import Features
from probekit.features.store import FeatureStore
from probekit.probes.probe import PROBES, FittedProbe, Probe, restore
from probekit.results.journal import Journal, share_work
from probekit.results.metrics import score
from probekit.results.predictions import RowPredictions, load_probe, save_probe
from probekit.results.record import (
    RESULTS_NAME,
    SCHEMA,
    Identity,
    Record,
    check_recordable,
    read_line,
    test_file,
)
from probekit.runtime.errors import UserError, did_you_mean
from probekit.runtime.progress import FitProgress, Progress
from probekit.selection.choose_C import FitSettings
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, grid_words, resolve_protocol


@dataclass(frozen=True)
class Job:
    """One probe to fit: its layers, its draw of training rows, and its kind ("" for the protocol's)."""

    layers: tuple[str, ...]
    seed: int = 0
    train_rows: int | None = None
    probe: str = ""
    per_class: int | None = None
    found_by: tuple[Mapping[str, Any], ...] = ()

    @property
    def draw(self) -> tuple[int, int | None, int | None]:
        """The fields that determine the training rows."""
        return self.seed, self.train_rows, self.per_class


class Runner:
    """State of a sweep or concatenation: features, output folder, and how probes are fitted (see `sweep`)."""

    def __init__(
        self,
        store: Features | str | Path,
        results_dir: str | Path | None,
        protocol: str | Protocol,
        Cs: Any,
        series: str | None,
        settings: FitSettings,
    ):
        self.store: Features = FeatureStore.open(store) if isinstance(store, str | Path) else store
        if results_dir is None and self.store.path is None:
            raise UserError("These features were not read from a file; give a folder for the results with out.")
        self.out = Path(results_dir if results_dir is not None else Path(self.store.path or "").parent)
        self.protocol = resolve_protocol(protocol, Cs)
        if series == "":
            raise UserError("series is empty; give a name for the curve, or omit it.")
        self.series = series or self._own_series(str(self.store.encoder.get("name", "encoder")))
        check_json(self.series, "The name of the series", Text(1000))
        self.settings = settings
        self._rows: dict[tuple[int, int | None, int | None], TrainingRows] = {}

    block_rows = BLOCK_ROWS  # read at a time from features that do not fit in memory

    @cached_property
    def choices(self) -> Journal:
        """Journal of all fitted probes, tested or not."""
        return Journal(self.out / "choices.jsonl", partial(read_line, tested=False))

    @cached_property
    def results(self) -> Journal:
        """Journal of the records."""
        return Journal(self.out / RESULTS_NAME, read_line)

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes results; with sharded rows only rank 0 does."""
        return not self.settings.sharded or current_ranks().first

    def path_for(self, workers: int) -> Path | None:
        """The feature file for worker processes; `UserError` for several workers and features in memory."""
        path = self.store.path
        if workers > 1 and (path is None or not Path(path).is_file()):
            raise UserError(f"workers is {workers}, but these features were not read from a file; use workers=1.")
        return None if path is None else Path(path)

    def probe(self, job: Job) -> Probe:
        """The kind of probe of a job."""
        return PROBES[job.probe or self.protocol.probe]()

    def rows(self, job: Job) -> TrainingRows:
        """The job's training rows (cached: all layers share them)."""
        if job.draw not in self._rows:
            self._rows[job.draw] = training_rows(self.store, *job.draw)
        return self._rows[job.draw]

    def identity(self, job: Job) -> Identity:
        """Everything that the job's results depend on."""
        rows = self.rows(job)
        return Identity(
            feature_id=self.store.id,
            layers=job.layers,
            protocol_hash=self.protocol.hash,
            split_hash=rows.split_hash,
            subset_hash=rows.subset_hash,
            seed=job.seed,
            dtype=self.settings.dtype,
            backend=self.settings.backend,
            solver_version=self.probe(job).version(self.settings),
            method=job.probe,
        )

    def run(self, jobs: Sequence[Job], progress: Progress | None = None) -> None:
        """Record every job in results.jsonl: first all choices, then all tests; other processes may share the work."""
        if not jobs:  # all that `concat` chose may be single layers
            return
        check_recordable(self.store)
        self.refuse_other_settings(jobs)
        by_key = {self.identity(job).key: job for job in jobs}
        done = self.results.keys()
        open_keys = [key for key in by_key if key not in done]
        settings, finish = self.settings, None
        if progress:
            sizes = {key: self.probe(job).n_fits(self.rows(job), self.protocol) for key, job in by_key.items()}
            fit_progress = FitProgress(sizes, by_key.keys() & done, progress)
            self.settings, finish = replace(settings, on_fit=fit_progress.count), fit_progress.finish
        try:
            self.share(self.choices, open_keys, lambda key: self.choose(by_key[key]), finish)
        finally:
            self.settings = settings
        if self.is_rank0:
            share_work(self.results, open_keys, self.test)
        if self.settings.sharded:
            self.settings.agree(None)  # the other ranks wait until the tests are done

    def share(
        self,
        journal: Journal,
        keys: Collection[str],
        work: Callable[[str], Mapping[str, Any]],
        progress: Callable[[set[str]], None] | None = None,
    ) -> None:
        """`share_work`; with sharded rows, all ranks work on each key together and rank 0 keeps the journal."""
        if not self.settings.sharded:
            share_work(journal, keys, work, progress)
        elif self.is_rank0:
            share_work(journal, keys, lambda key: work(self.settings.agree(key)), progress)
            self.settings.agree(None)
        else:
            while (key := self.settings.agree(None)) is not None:
                work(key)

    def _own_series(self, name: str) -> str:
        """Name of the series: the encoder's, followed by the penalties if the folder has it with different ones."""
        mine = self.protocol.resolved()
        for line in self.results.lines():
            theirs = line["protocol"]
            if line.get("series") == name and line["identity"]["feature_id"] == self.store.id:
                differing = [key for key in mine if key not in ("name", "source") and mine[key] != theirs.get(key)]
                if differing == ["Cs"]:
                    return f"{name}, {grid_words(self.protocol.Cs)}"
        return name

    def refuse_other_settings(self, jobs: Sequence[Job]) -> None:
        """Raise if the folder has a series of this name made with different settings, which the message lists.

        Probes that read tokens have a separate feature file and are compared only with each other.
        """
        reads_tokens = {self.probe(job).reads == "tokens" for job in jobs}
        about: dict[str, Any] = {"dtype": self.settings.dtype, "backend": self.settings.backend}
        about["solver"] = self.probe(jobs[0]).version(self.settings)
        mine = {"feature file": self.store.id, **about, "protocol": _without_name(self.protocol.resolved())}

        def check(line: Mapping[str, Any]) -> None:
            if line.get("series") != self.series or (line["reads"] == "tokens") not in reads_tokens:
                return
            identity, names = line["identity"], ("feature_id", "dtype", "backend", "solver_version", "protocol")
            theirs = {new: identity.get(old) for new, old in zip(mine, names, strict=True)}
            if differing := differ(theirs | {"protocol": _without_name(line["protocol"])}, mine):
                raise UserError(
                    f"{self.results.path} contains series {self.series!r} with different settings ({differing}); "
                    "use the same settings, another series name or another output folder."
                )

        for journal in (self.results, self.choices):
            for line in journal.lines():
                check(line)
            journal.check = check  # another process may start the series with different settings at the same time

    def layer_widths(self, layers: Sequence[str]) -> list[int]:
        """Number of columns of each layer."""
        return [self.store.widths[self.store.layers.index(layer)] for layer in layers]

    def fits(self, n_rows: int, width: int, device: torch.device = torch.device("cpu")) -> bool:  # noqa: B008
        """Whether float32 features fit in the free memory."""
        return fits(n_rows, width, device)

    def widths(self, job: Job) -> list[int]:
        """Number of columns of each layer of a job, or of each token if its probe reads tokens."""
        widths = self.layer_widths(job.layers)
        return token_widths(self.store.encoder, sum(widths)) if self.probe(job).reads == "tokens" else widths

    def features(self, job: Job) -> Any:
        """Features (n, D) of a job's training rows, streamed from their file if memory is too small.

        On a GPU with enough memory they are copied once to the device as a tensor.
        """
        rows, probe, width = self.rows(job), self.probe(job), sum(self.layer_widths(job.layers))
        lazy = self.settings.sharded or not self.fits(len(rows.y), width)
        if lazy and not probe.streams:
            raise UserError(
                f"A {probe.kind} probe needs all {len(rows.y):,} rows of layer {'+'.join(job.layers)} in memory, "
                f"where their {width:,} columns do not fit; omit this probe, or set train_rows."
            )
        X = training_features(self.store, job.layers, rows.positions, self.protocol.normalize, lazy)
        device = find_device(self.settings.device)
        moved = not lazy and device.type == "cuda" and self.fits(len(rows.y), width, device)
        return to_device(X, device) if moved else X

    def choose(self, job: Job) -> dict[str, Any]:
        """Choose and fit a job's probe; return its line of choices.jsonl."""
        start, X = perf_counter(), self.features(job)
        fitted = self.probe(job).fit(X, self.widths(job), self.rows(job), self.protocol, self.settings)
        return self._line(job, fitted, X, perf_counter() - start)

    def _line(self, job: Job, fitted: FittedProbe, X: Any, seconds: float) -> dict[str, Any]:
        """Write the file of a probe fitted on X (n, D); return the record without test metrics."""
        identity, probe = self.identity(job), self.probe(job)
        assert fitted.selection is not None
        probe_file = f"probes/{identity.key}.safetensors"
        if self.is_rank0:
            save_probe(self.out / probe_file, fitted.arrays() | {"classes": fitted.classes.astype(np.int64)})
        found_by = [*job.found_by, *([fitted.search_info] if fitted.search_info else [])]
        kind, depth = job.probe or ("layer" if len(job.layers) == 1 else "concat"), None
        if len(job.layers) == 1:  # a feature file with a subset of the layers records their depths
            depths = self.store.encoder.get("depths", range(len(self.store.layers)))
            depth = int(depths[self.store.layers.index(job.layers[0])])
        return {
            "schema": SCHEMA,
            "key": identity.key,
            "identity": identity.to_dict(),
            "kind": kind,
            "probe": probe.kind,
            "reads": probe.reads,
            "tunes": probe.tunes,
            "series": self.series,
            "depth": depth,
            "n_layers": len(self.store.layers),
            "width": X.shape[1],
            "encoder": dict(self.store.encoder),
            "dataset": dict(self.store.dataset),
            "protocol": self.protocol.resolved(),
            "feature_file": Path(os.path.relpath(path, self.out)).as_posix() if (path := self.store.path) else "",
            **fitted.selection.to_dict(),
            "refit": dict(fitted.certificate),
            "train_accuracy": fitted.train_accuracy,
            "probe_file": probe_file,
            "train_rows": len(self.rows(job).y) if job.per_class else job.train_rows,
            "per_class": job.per_class,
            "candidates": {"found_by": found_by} if found_by else None,
            "rankme": rankme(X, self.settings.device) if kind == "layer" and self.is_rank0 else None,
            "seconds": round(seconds, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }

    def test(self, key: str) -> dict[str, Any]:
        """Read the test splits for a chosen probe, write its per-row files and return the line of its record."""
        start = perf_counter()
        line = next((line for line in self.choices.lines() if line["key"] == key), None)
        if line is None:
            raise UserError(f"{self.choices.path} has lost a line that was in it: run the same command again.")
        layers, normalize = line["identity"]["layers"], self.protocol.normalize
        path = self.out / line["probe_file"]
        arrays = load_probe(path)

        def read_rows(positions: np.ndarray) -> np.ndarray:
            return np.asarray(training_features(self.store, layers, positions, normalize))

        fitted = restore(line["probe"], arrays, line["width"], read_rows, self.settings.device, path)
        metrics = {}
        for split in (split for split in self.store.splits if split not in ("train", "val")):
            rows, metrics[split] = self._predict(split, layers, fitted)
            if split == "test":
                save_probe(path, arrays, rows)
            else:
                save_probe(self.out / test_file(line["probe_file"], split), {"classes": rows.classes}, rows)
        other_tests = {"tests": metrics} if len(metrics) > 1 else {}
        seconds = round(line["seconds"] + perf_counter() - start, 3)
        return line | {"metrics": metrics.pop("test"), **other_tests, "seconds": seconds}

    def _predict(self, split: str, layers: Sequence[str], fitted: FittedProbe) -> tuple[RowPredictions, dict[str, Any]]:
        """Predictions of a probe for a test split, and their scores.

        For a test set with a subset of the classes, only these can be predicted, as ImageNet-R and -A are scored.
        """
        y, classes, normalize = self.store.labels(split), fitted.classes, self.protocol.normalize
        columns = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        if not np.array_equal(classes[columns], y):
            unseen = y[classes[columns] != y][0]
            raise UserError(f"Label {unseen} of the {split} split has no training row; split the rows differently.")
        step = len(y) if self.fits(len(y), sum(self.layer_widths(layers))) else self.block_rows
        blocks = [slice(at, min(at + step, len(y))) for at in range(0, len(y), step)]
        log_proba = np.concatenate(
            [fitted.predict_log_proba(read_features(self.store, split, layers, rows, normalize)) for rows in blocks]
        )
        described = self.store.dataset.get("tests", {}).get(split, {})
        own = np.isin(classes, described.get("labels", classes))
        if not own.all():
            classes, log_proba = classes[own], log_softmax(log_proba[:, own], axis=1)
            columns = np.searchsorted(classes, y)
        predictions = classes[log_proba.argmax(axis=1)]
        return RowPredictions(self.store.row_ids(split), y, predictions, log_proba, classes), score(log_proba, columns)


def check_kinds(kinds: Sequence[str], reads: Sequence[str], protocol: Protocol) -> None:
    """Raise for kinds of probes that are unknown or do not fit the features or the protocol."""
    for kind in kinds:
        if kind not in PROBES or PROBES[kind].reads not in reads:
            known = sorted(k for k, probe in PROBES.items() if probe.reads in reads and probe().grid(protocol))
            hint = did_you_mean(kind, known)
            raise UserError(f"Unknown probe {kind!r} of {' or '.join(reads)}; choose one of {', '.join(known)}.{hint}")
        PROBES[kind]().check(protocol)
    if len(kinds) > 1 and (protocol.sgd is not None or len({PROBES[kind].reads for kind in kinds}) > 1):
        raise UserError(
            f"{', '.join(kinds)} cannot be fitted in one call; checks need an exact protocol and pooled features."
        )


def warn_unconverged(records: Sequence[Record]) -> None:
    """Issue one `ConvergenceWarning` that names the records whose chosen fit or refit is not certified."""
    doubtful = [f"{'+'.join(r.layers)} (seed {r.seed})" for r in records if not r.is_converged]
    if doubtful:
        warnings.warn(
            f"Not certified as converged (marked in tables): {', '.join(doubtful)}; raise max_iter or use float64.",
            ConvergenceWarning,
            stacklevel=3,
        )


def token_widths(encoder: Mapping[str, Any], width: int) -> list[int]:
    """The number of columns of each token (T entries of D) in `width` columns; `UserError` for pooled features."""
    n_tokens = encoder.get("tokens")
    if not n_tokens or width % n_tokens:
        raise UserError(
            "An attentive probe needs the features of every token, but these are pooled; "
            "extract with `probekit extract tokens:igpt:RUN DATASET --layers 05 --out tokens.h5`."
        )
    return [width // n_tokens] * n_tokens


def _without_name(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in protocol.items() if name not in ("name", "source")}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("igpt-probekit", "torch", "numpy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "source"
    return versions


def training_rows(
    store: Features, seed: int = 0, train_rows: int | None = None, per_class: int | None = None
) -> TrainingRows:
    """The training rows of one seed.

    Parameters
    ----------
    store : FeatureStore; without a "val" split a tenth of "train" is held out
    seed : 0 uses the stored split; other seeds redraw val and resample the rows within each class (bootstrap)
    train_rows : use only this many labelled rows, including val, in class proportion; each seed draws different ones
    per_class : use only this many labelled rows of each class instead (few-shot); each seed draws different ones
    """
    if "train" not in store.splits or "test" not in store.splits:
        raise UserError(f"{_name(store)} has splits {', '.join(store.splits)}; probing needs train and test.")
    parts = ["train", "val"] if "val" in store.splits else ["train"]
    labels = np.concatenate([store.labels(part) for part in parts])
    ids = np.concatenate([store.row_ids(part) for part in parts])
    if len(np.unique(labels)) < 2:
        raise UserError(f"The training labels of {_name(store)} are all {labels[0]}, but a probe needs two classes.")
    is_val = np.arange(len(labels)) >= len(store.labels("train"))
    if seed > 0 or not is_val.any():
        fraction = is_val.mean() if is_val.any() else 0.1
        is_val = np.isin(np.arange(len(labels)), stratified_holdout(labels, float(fraction), seed)[1])
    if per_class is not None:
        counts = np.zeros(len(labels))
        counts[_rows_of_each_class(store, labels, per_class, seed)] = 1
    elif train_rows is None:
        counts = _bootstrap_counts(labels, is_val, seed) if seed > 0 else np.ones(len(labels))
    else:
        if not 2 <= train_rows <= len(labels):
            raise UserError(
                f"train_rows is {train_rows}; give 2 to {len(labels)}, the number of training rows in {_name(store)}."
            )
        counts = np.zeros(len(labels))
        counts[stratified_subset(labels, train_rows, seed)] = 1
    positions = np.flatnonzero(counts)
    return TrainingRows(
        seed=seed,
        positions=positions,
        y=labels[positions],
        weights=counts[positions],
        is_val=is_val[positions],
        split_hash=hash_arrays({"train": ids[~is_val], "val": ids[is_val], "test": store.row_ids("test")}),
        subset_hash=hash_arrays({"positions": positions, "weights": counts[positions]}),
    )


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """0 to n-1 for a count n, else the seeds themselves."""
    if isinstance(seeds, int) and seeds > SEEDS.most:
        check_range("seeds", seeds, SEEDS)
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not listed or not all(isinstance(seed, Integral) and seed in SEED for seed in listed):
        raise UserError(f"seeds is {seeds}, but a count of at least 1 or a list of seeds {SEED} is needed.")
    return [int(seed) for seed in listed]


def _rows_of_each_class(store: Features, labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of `per_class` rows of each class: those with the smallest random numbers for this seed."""
    found, sizes = np.unique(labels, return_counts=True)
    if per_class < 1 or sizes.min() < per_class:
        raise UserError(
            f"per_class is {per_class}; give 1 to {sizes.min()}, the rows of the rarest class in {_name(store)} "
            f"(label {found[sizes.argmin()]})."
        )
    bits = random_bits(seed + (1 << 33), np.arange(len(labels)))
    order = np.lexsort((bits, labels))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.sort(np.concatenate([order[start : start + per_class] for start in starts]))


def _bootstrap_counts(labels: np.ndarray, is_val: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap counts (N,) of the rows when each class is resampled with replacement within train and within val."""
    counts = np.zeros(len(labels))
    for label in np.unique(labels):
        for held in (False, True):
            rows = np.flatnonzero((labels == label) & (is_val == held))
            # integer hashing as for the splits, identical on every machine, with a seed that the splits do not use
            draws = random_bits(seed + (1 << 32), rows) % np.uint64(max(len(rows), 1))
            np.add.at(counts, rows[draws.astype(np.int64)], 1)
    return counts


def _name(store: Features) -> str:
    return str(store.path or "the feature file")
