"""`sweep`: probe every layer of a feature file under a protocol; one record a layer and seed."""

import fnmatch
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from probekit.evaluate.runner import Job, Runner
from probekit.features.store import Features
from probekit.probes import PROBES, Protocol
from probekit.results.record import Record, read_records
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.runtime.progress import Progress
from probekit.runtime.workers import worker_processes
from probekit.selection.protocol import resolve_protocol
from probekit.selection.settings import make_settings


def sweep(
    store: Features | str | Path,
    results_dir: str | Path | None = None,
    protocol: str | Protocol = "igpt",
    Cs: Any = None,
    layers: str | Sequence[str | int] | None = None,
    series: str | None = None,
    seeds: int | Sequence[int] = 1,
    train_rows: int | None = None,
    backend: str = "torch",
    device: str = "cpu",
    dtype: str = "auto",
    checks: Sequence[str] = (),
    probe: str | None = None,
    workers: int = 1,
    parallel: str = "layers",
    progress: Progress | None = None,
) -> Results:
    """Probe every layer: choose C on held-out training rows, refit, then test, and journal one record each.

    The same call again goes on where it was stopped; several processes may run it at once on the same folder.

    Parameters
    ----------
    store : features, or the path of a feature file
    results_dir : folder of results.jsonl and probes/; None for the folder of the feature file
    protocol : name or `Protocol`
    Cs : penalties in place of the protocol's (scikit-learn's C)
    layers : None for all, names, indices, or a glob such as "0*"
    series : name of the curve in tables; None for the encoder's name
    seeds : a count n for seeds 0 to n-1, or the seeds. Seed 0 is the stored split; the others redraw the val split and
        resample the training rows
    train_rows : use only so many labelled rows (train and val together), drawn by class and seed
    backend, device, dtype : of the solver ("auto": float64 where it costs nothing, see `fit_path`)
    checks : kinds of cheap probes of every layer beside the protocol's: knn, ridge, or another that reads a layer
    probe : kind in place of the protocol's own (None); "attentive", AIM's, needs a file of all tokens (encoders
        `tokens:...`)
    workers : processes that share the work, the cores being shared out among them; for a feature file on disk. Small
        fits (thousands of rows, hundreds of columns) gain by it, large ones fill all cores as they are
    parallel : under torchrun, what the processes share: "layers" (each fits others, by the journal), or "rows": all
        work at one layer, each holding its share of the rows and adding up gradients, for layers too large for one
    progress : called with (fits done, fits in all); steps of an SGD protocol

    Returns
    -------
    Results
        All records of the folder.

    Raises
    ------
    UserError
        Unusable features, labels, layers or penalties, or a folder whose series of this name was made otherwise.
    """
    resolved = resolve_protocol(protocol, Cs)
    own = resolved.probe
    kinds = list(dict.fromkeys([probe or own, *checks]))
    check_kinds(kinds, ("layer", "tokens"), resolved)
    if parallel == "rows" and (workers != 1 or not all(PROBES[kind].shards for kind in kinds)):
        raise UserError("parallel='rows' supports linear probes only; remove probe, checks and workers.")
    if workers != 1 and PROBES[own].fits_together:
        raise UserError(f"workers is {workers}, but {own} trains all layers in one process: leave workers out.")
    runner = Runner(store, results_dir, resolved, None, series, make_settings(backend, device, dtype, parallel))
    names, draws = choose_names(runner.store, layers), seed_list(seeds)
    jobs = [
        Job((layer,), seed, train_rows, "" if kind == own else kind)
        for kind in kinds
        for seed in draws
        for layer in names
    ]
    for job in jobs:
        runner.widths(job)  # refuses pooled features for a probe that reads tokens
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
        runner.run(jobs, progress)
    keys = {runner.identity(job).key for job in jobs}
    warn_unconverged([r for r in read_records(runner.out) if r.key in keys and r.tunes == "C"])
    return Results(runner.out)


def check_kinds(kinds: Sequence[str], reads: Sequence[str], protocol: Protocol) -> None:
    """Refuse kinds of probes that are unknown, read what a call does not offer, or do not go with the protocol."""
    for kind in kinds:
        if kind not in PROBES or PROBES[kind].reads not in reads:
            known = sorted(k for k, probe in PROBES.items() if probe.reads in reads and not probe.fits_together)
            raise UserError(f"There is no probe {kind!r} of {' or '.join(reads)}: choose of {', '.join(known)}.")
        PROBES[kind]().check(protocol)
    if len(kinds) > 1 and (PROBES[protocol.probe].fits_together or len({PROBES[kind].reads for kind in kinds}) > 1):
        raise UserError(
            f"{', '.join(kinds)} cannot be probed in one call: checks go with an exact protocol and pooled features."
        )


def path_for_workers(store: Features, workers: int) -> Path | None:
    """Where other processes find the features; in memory they cannot, which raises `UserError` if any are wanted."""
    path = store.path
    if workers > 1 and (path is None or not Path(path).is_file()):
        raise UserError(f"workers is {workers}, but these features are in no file that another process could open.")
    return None if path is None else Path(path)


def choose_names(store: Features, layers: str | Sequence[str | int] | None) -> list[str]:
    """Layer names, shallow to deep, from None (all), a glob, names or indices; an unknown one raises `UserError`."""
    if layers is None:
        return list(store.layers)
    known = f"{store.path or 'the features'} has {', '.join(store.layers)}"
    if isinstance(layers, str):
        matched = [name for name in store.layers if fnmatch.fnmatchcase(name, layers)]
        if not matched:
            raise UserError(f"No layer matches {layers!r}: {known}.")
        return matched
    found = {store.layer(layer) for layer in layers}
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
