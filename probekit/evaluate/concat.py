"""`concat`: probe concatenated layers, in windows around the best layer and in a greedy choice of layers.

Every choice is made on held-out training rows; the test split is read after all sets of layers are chosen.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from igpt_model.arguments import checked
from igpt_model.checked_json import Real, check_schema
from probekit.evaluate.runner import Job, Runner, check_kinds, seed_list, warn_unconverged
from probekit.features.readable import Features
from probekit.probes.probe import PROBES
from probekit.results.curve import choose_layer
from probekit.results.journal import Journal
from probekit.results.record import Record, read_records
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.runtime.progress import Progress
from probekit.runtime.progress_bar import shown
from probekit.runtime.workers import worker_processes
from probekit.selection.choose_C import Selection, choose_C, make_settings
from probekit.selection.protocol import Protocol, subsample_grid

_CANDIDATE = {"score": float, "val_accuracy": Real(0, 1)}


@checked
def concat(
    features: Features | str | Path,
    out: str | Path | None = None,
    protocol: Protocol | str = "igpt",
    Cs: Sequence[float] | None = None,
    window: Sequence[int] | int = 5,
    greedy_width: int | None = None,
    series: str | None = None,
    seeds: int | Sequence[int] = 1,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] = "auto",
    probes: Sequence[str] = (),
    workers: int = 1,
    parallel: Literal["layers", "rows"] = "layers",
    progress: Progress | bool | None = None,
) -> Results:
    """Probe concatenated layers: windows around the best single layer, and a greedy choice.

    Single layers not swept yet are swept first. Repeat the call to resume after an interruption.

    Parameters
    ----------
    features : FeatureStore, str or Path
        The feature file.
    out : str or Path
        Folder of results.jsonl and probes/; by default that of the feature file.
    protocol : Protocol or str
        The protocol of the sweep.
    Cs : sequence of float
        Penalties that replace the protocol's, in scikit-learn's convention for C.
    window : int or sequence of int
        Number of neighbouring layers concatenated around the best one (the paper's is 5).
    greedy_width : int
        Maximum number of columns of the greedy choice; by default that of the widest window; 0 disables it.
    series : str
        Name of the curve; by default the encoder's name.
    seeds : int or sequence of int
        Number of repetitions, as in `sweep`. Layers are chosen once: windows around the best layer by mean score, the
        greedy choice on the held-out rows of the first seed.
    backend : str
        Solver backend.
    device : str
        Device of the solver: cpu, cuda, cuda:1.
    dtype : str
        Precision of the solver; auto uses float64 if that costs nothing.
    probes : sequence of str
        Further kinds of probes for the windows: banded (one penalty per layer), mix (a learned softmax mix of the
        layers).
    workers : int
        Processes that share the work and the cores, as in `sweep`.
    parallel : str
        How processes started by torchrun divide the work: by layers or by rows of one layer, as in `sweep`.
    progress : callable or bool
        Called with (sets of layers examined, sets known so far). True shows a progress bar.

    Returns
    -------
    Results
        The records of this call, of single and of concatenated layers. In those of kind "concat", `candidates` records
        how their layers were chosen and how many sets were tried.

    Raises
    ------
    UserError
        As for `sweep`, or the budget is below the narrowest layer, or the encoder has only one layer.
    """
    if parallel == "rows" and (probes or workers != 1):
        raise UserError("parallel='rows' supports plain linear probes only; remove probes and workers.")
    runner = Runner(features, out, protocol, Cs, series, make_settings(backend, device, dtype, parallel))
    if PROBES[runner.protocol.probe].tunes != "C":
        raise UserError(
            f"Protocol {runner.protocol.name} trains by SGD, which cannot concatenate layers; use igpt, for example."
        )
    check_kinds(probes, ("layers",), runner.protocol)
    if len(runner.store.layers) < 2:
        raise UserError(f"Series {runner.series!r} has only one layer; concatenation needs at least two.")
    # before any probe is fitted
    sizes = [window] if isinstance(window, int) else list(window)
    if not sizes:
        raise UserError("window is an empty list; give one or more numbers of layers to concatenate.")
    for size in sizes:
        windows(len(runner.store.layers), 0, size)
    if greedy_width:
        check_budget(runner.store.widths, greedy_width)
    again: dict[str, Any] = {"protocol": protocol, "Cs": Cs, "series": runner.series, "backend": backend}
    again |= {"device": device, "dtype": dtype, "parallel": parallel}
    again |= {"window": window, "greedy_width": greedy_width, "seeds": seeds, "probes": probes}
    helpers = worker_processes(workers, concat, runner.path_for(workers), runner.out, **again)
    with helpers, shown(progress, "concat", "sets of layers") as show:
        jobs = _concat(runner, sizes, greedy_width, seed_list(seeds), probes, show)
    results = Results(runner.out).only({runner.identity(job).key for job in jobs})
    warn_unconverged(results.records)
    return results


def _concat(
    runner: Runner,
    sizes: Sequence[int],
    greedy_width: int | None,
    seeds: Sequence[int],
    probes: Sequence[str],
    progress: Progress | None,
) -> list[Job]:
    """Probe the missing single layers, choose the sets of layers and probe them; return all jobs."""
    n_layers = len(runner.store.layers)
    singles = [[Job((layer,), seed) for layer in runner.store.layers] for seed in seeds]
    runner.run([job for draw in singles for job in draw])
    records = {record.key: record for record in read_records(runner.out)}
    draws = [[records[runner.identity(job).key] for job in draw] for draw in singles]
    best = choose_layer(*draws)
    sets: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for size in sizes:
        indices = windows(n_layers, best, size)
        rule = f"window of {len(indices)} around layer {runner.store.layers[best]}"
        sets.setdefault(indices, []).append({"rule": rule, "tried": n_layers})
    windowed = [indices for indices in sets if len(indices) > 1]
    widest = max(sum(runner.store.widths[i] for i in indices) for indices in sets)
    if greedy_width != 0:
        budget = widest if greedy_width is None else greedy_width
        indices, how = search(runner, budget, draws[0], progress)
        sets.setdefault(indices, []).append(how)
    names = {indices: tuple(runner.store.layers[i] for i in indices) for indices in sets if len(indices) > 1}
    wanted = [("", indices) for indices in names]
    wanted += [(kind, indices) for kind in dict.fromkeys(probes) for indices in windowed]
    jobs = [
        Job(names[indices], seed, probe=kind, found_by=tuple(sets[indices]))
        for kind, indices in wanted
        for seed in seeds
    ]
    runner.run(jobs)
    return [job for draw in singles for job in draw] + jobs


def search(
    runner: Runner, budget: int, singles: Sequence[Record], progress: Progress | None = None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Greedy forward choice of layers within `budget` columns, by held-out score on a subsampled grid of C.

    Every set examined is a line of candidates.jsonl, so an interrupted search can resume and workers can share it.
    `singles` are the records of single layers, with their scores.

    Returns
    -------
    layers : tuple of int
    how : {"rule", "tried", "steps": [{"layers", "val_accuracy", "columns"}]}
    """
    # the search compares layers on few penalties; the final probe uses the whole grid
    coarse = runner.protocol.with_(Cs=subsample_grid(runner.protocol.Cs), refine=0)
    scout = Runner(runner.store, runner.out, coarse, None, runner.series, runner.settings)
    journal = Journal(runner.out / "candidates.jsonl", partial(check_schema, schema=_CANDIDATE))
    scores: dict[tuple[int, ...], dict[str, Any]] = {
        (runner.store.layers.index(record.layers[0]),): _score_of(record, scout.protocol.Cs) for record in singles
    }
    # upper bound: each step tries all remaining layers
    widths = runner.store.widths
    most = sum(len(widths) - taken for taken in range(min(len(widths), max(1, budget // min(widths)))))

    def score(sets: list[tuple[int, ...]]) -> list[float]:
        new = [indices for indices in sets if indices not in scores]
        jobs = [Job(tuple(runner.store.layers[i] for i in indices), singles[0].seed) for indices in new]
        by_key = {scout.identity(job).key: job for job in jobs}

        def examine(job: Job) -> dict[str, Any]:
            start = perf_counter()
            selection = choose_C(scout.features(job), scout.rows(job), scout.protocol, scout.settings)
            facts = {"score": selection.score, "val_accuracy": float(selection.accuracy[selection.index])}
            facts |= {"C": selection.chosen, "converged": bool(selection.converged[selection.index])}
            about = {"key": scout.identity(job).key, "layers": job.layers}
            return {**about, **facts, "seconds": round(perf_counter() - start, 3)}

        examined = len(scores)
        shown = (lambda done: progress(examined + len(done), most)) if progress else None
        scout.share(journal, by_key, lambda key: examine(by_key[key]), shown)
        lines = {line["key"]: line for line in journal.lines()}
        scores.update(zip(new, (lines[key] for key in by_key), strict=True))
        return [float(scores[indices]["score"]) for indices in sets]

    chosen = [indices for indices, _ in greedy(widths, score, max_width=budget)]
    steps = [
        {
            "layers": [runner.store.layers[i] for i in indices],
            "val_accuracy": scores[indices]["val_accuracy"],
            "columns": sum(widths[i] for i in indices),
        }
        for indices in chosen
    ]
    return chosen[-1], {"rule": f"greedy within {budget} columns", "tried": len(scores), "steps": steps}


def _score_of(record: Record, Cs: Sequence[float]) -> dict[str, Any]:
    """The held-out scores of the sweep, restricted to the penalties `Cs`."""
    among = np.isclose(np.asarray(record.Cs)[:, None], np.asarray(Cs), rtol=1e-9).any(axis=1)
    names = ("val_accuracy", "val_log_loss", "n_iter", "grad_rel", "gap", "converged")
    selection = Selection(np.asarray(record.Cs)[among], *(np.asarray(getattr(record, name))[among] for name in names))
    return {"score": selection.score, "val_accuracy": float(selection.accuracy[selection.index])}


def windows(n_layers: int, centre: int, width: int = 5) -> tuple[int, ...]:
    """The `width` consecutive layers around `centre`, moved inwards at the ends (the paper's five, section 4.3)."""
    if width < 1:
        raise UserError(f"window is {width}; give at least 1 layer.")
    width = min(width, n_layers)
    start = min(max(centre - width // 2, 0), n_layers - width)
    return tuple(range(start, start + width))


def greedy(
    widths: Sequence[int], score: Callable[[list[tuple[int, ...]]], list[float]], max_width: int | None = None
) -> list[tuple[tuple[int, ...], float]]:
    """Add the layer that most improves a held-out score, until the column budget is used up or no layer improves it.

    `widths` are the columns of each layer, `max_width` the most columns together (None: no limit). `score` returns the
    held-out scores (never the test split's) of sorted tuples of layers, all candidates of a step at once. Returns
    (layers, score) of every step, beginning with the best single layer; ties go to the shallower layer.
    """
    check_budget(widths, max_width)
    chosen: tuple[int, ...] = ()
    steps: list[tuple[tuple[int, ...], float]] = []
    while True:
        left = np.inf if max_width is None else max_width - sum(widths[layer] for layer in chosen)
        candidates = [layer for layer, width in enumerate(widths) if layer not in chosen and width <= left]
        if not candidates:
            break
        scores = score([tuple(sorted((*chosen, layer))) for layer in candidates])
        scored = dict(zip(candidates, scores, strict=True))
        best = max(candidates, key=lambda layer: (scored[layer], -layer))
        if steps and scored[best] <= steps[-1][1]:
            break
        chosen = tuple(sorted((*chosen, best)))
        steps.append((chosen, scored[best]))
    return steps


def check_budget(widths: Sequence[int], most: int | None) -> None:
    """Raise `UserError` if no layer of these widths fits into `most` columns (None: no limit)."""
    if most is not None and most < min(widths):
        raise UserError(f"no layer fits a budget of {most} columns (the narrowest has {min(widths)}); raise it.")
