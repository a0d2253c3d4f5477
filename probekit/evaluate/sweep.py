"""`sweep`: probe every layer of a feature file under a protocol; one record a layer and seed."""

import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sklearn.exceptions import ConvergenceWarning

from probekit.evaluate.runner import Job, Progress, Runner
from probekit.features.store import FeatureStore
from probekit.probes.attentive_probe import token_widths
from probekit.results.record import Record, read_records
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.runtime.workers import worker_processes
from probekit.selection.choose_C import make_solver
from probekit.selection.protocol import Protocol


def sweep(
    store: FeatureStore | str | Path,
    results_dir: str | Path | None = None,
    protocol: Protocol | str = "igpt",
    Cs: Sequence[float] | None = None,
    layers: str | Sequence[str | int] | None = None,
    series: str | None = None,
    seeds: int | Sequence[int] = 1,
    train_rows: int | None = None,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] = "auto",
    checks: Sequence[Literal["knn", "ridge"]] = (),
    probe: Literal["linear", "attentive"] = "linear",
    workers: int = 1,
    parallel: Literal["layers", "rows"] = "layers",
    progress: Progress | None = None,
) -> Results:
    """Probe every layer: choose C on held-out training rows, refit, test once, and append a record each.

    The same call again resumes after an interruption; several processes may run it at once on the same folder.

    Parameters
    ----------
    store : FeatureStore, str or Path
        The feature file.
    results_dir : str or Path
        Folder of results.jsonl and probes/; by default that of the feature file.
    protocol : Protocol or str
        igpt, dinov2-45, clip-coarse-fine, kornblith or sgd-imagenet.
    Cs : sequence of float
        Penalties in place of the protocol's, as scikit-learn's C.
    layers : str or sequence of str or int
        Names or globs of layers, for example 04 or '0*'; by default all.
    series : str
        Name of the curve in figures and tables; by default the encoder's name.
    seeds : int or sequence of int
        Number of repetitions: seed 0 is the stored split, the others redraw the validation split and resample the
        training rows.
    train_rows : int
        Use only this many labelled rows, train and validation together, drawn by class.
    backend : str
        Solver backend. Every solution is checked against our objective.
    device : str
        Device of the solver: cpu, cuda, cuda:1.
    dtype : str
        Precision of the solver; auto is float64 where that costs nothing.
    checks : sequence of str
        Cheap probes of every layer beside the protocol's: k nearest neighbours, ridge regression.
    probe : str
        attentive: AIM's probe instead of the linear one, on a file extracted from tokens:igpt:RUN.
    workers : int
        Processes that share the work and the cores. One a core helps small fits (thousands of rows, hundreds of
        columns); a large fit uses all cores by itself.
    parallel : str
        What processes started by torchrun share: layers (each fits different ones), or the rows of one layer that is
        too large for one process.
    progress : callable
        Called with (fits done, fits in all); for an SGD protocol with steps.

    Returns
    -------
    Results
        All records of the folder.

    Raises
    ------
    UserError
        Unusable features, labels, layers or penalties, or a folder whose series of this name was made otherwise.
    """
    if parallel == "rows" and (probe != "linear" or checks or workers != 1):
        raise UserError("parallel is rows, which is for linear probes alone: leave probe, checks and workers out.")
    runner = Runner(store, results_dir, protocol, Cs, series, make_solver(backend, device, dtype, parallel))
    jobs = [
        Job((layer,), seed, train_rows) for seed in seed_list(seeds) for layer in choose_names(runner.store, layers)
    ]
    if probe not in ("linear", "attentive") or (probe == "attentive" and (checks or runner.protocol.solver == "sgd")):
        raise UserError(f"probe may be linear, or attentive without checks or SGD, but {probe} was given.")
    if probe == "attentive":
        for job in jobs:
            token_widths(runner.store.encoder, runner.width(job.layers))
        jobs = [replace(job, kind=probe, method=probe) for job in jobs]
    strange = set(checks) - {"knn", "ridge"}
    if strange or (checks and runner.protocol.solver == "sgd"):
        raise UserError(f"checks may be knn and ridge, of an exact protocol, but {', '.join(checks)} was given.")
    if runner.protocol.solver == "sgd":
        if workers != 1 or parallel == "rows":
            given = f"workers is {workers}" if workers != 1 else "parallel is rows"
            raise UserError(f"{given}, but SGD trains all layers in one pass in one process: leave that out.")
        from probekit.evaluate.sgd_sweep import run_sgd

        run_sgd(runner, jobs, progress)
        return Results(runner.out)
    check_jobs = [replace(job, kind=check, method=check) for check in dict.fromkeys(checks) for job in jobs]
    again = {
        "Cs": Cs,
        "layers": layers,
        "series": series,
        "seeds": seeds,
        "train_rows": train_rows,
        "checks": checks,
        "probe": probe,
    }
    again |= {"backend": backend, "device": device, "dtype": dtype}
    with worker_processes(workers, sweep, path_for_workers(runner.store, workers), runner.out, protocol, **again):
        runner.run([*jobs, *check_jobs], progress)
    keys = {runner.identity(job).key for job in jobs}
    if probe == "linear":
        warn_unconverged([r for r in read_records(runner.out) if r.key in keys])
    return Results(runner.out)


def path_for_workers(store: Any, workers: int) -> Path | None:
    """Where other processes find the features; in memory they cannot, which raises `UserError` if any are wanted."""
    path = getattr(store, "path", None)
    if workers > 1 and (path is None or not Path(path).is_file()):
        raise UserError(f"workers is {workers}, but these features are in no file that another process could open.")
    return None if path is None else Path(path)


def choose_names(store: Any, layers: str | Sequence[str | int] | None) -> list[str]:
    """Layer names, shallow to deep, from None (all), names, globs or indices; an unknown one raises `UserError`."""
    if layers is None:
        return list(store.layers)
    found = set()
    for layer in [layers] if isinstance(layers, str) else layers:
        matched = [name for name in store.layers if fnmatch.fnmatchcase(name, layer)] if isinstance(layer, str) else []
        found |= set(matched or [store.layer(layer)])
    return [name for name in store.layers if name in found]


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """0 to n-1 for a count n, else the seeds themselves."""
    listed = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not listed or min(listed) < 0:
        raise UserError(f"seeds is {seeds}, but a count of at least 1 or a list of seeds from 0 up is needed.")
    return listed


def warn_unconverged(records: Sequence[Record]) -> None:
    """One `ConvergenceWarning` that names the records whose chosen fit or refit is not certified."""
    doubtful = [f"{'+'.join(r.layers)} (seed {r.seed})" for r in records if not r.is_converged]
    if doubtful:
        warnings.warn(
            f"Not certified converged: {', '.join(doubtful)}; tables mark them: raise max_iter or use float64.",
            ConvergenceWarning,
            stacklevel=3,
        )
