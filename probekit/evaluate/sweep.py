"""`sweep`: probe every layer of a feature file under a protocol; one record per layer and seed."""

import fnmatch
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from numpy.typing import ArrayLike

from igpt_model.arguments import check_kind, checked, plain_array
from probekit.datasets.splits import stratified_holdout
from probekit.evaluate.runner import Job, Runner, check_kinds, seed_list, warn_unconverged
from probekit.features.memory_store import MemoryStore
from probekit.features.readable import Features
from probekit.probes.probe import PROBES
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.runtime.progress import Progress
from probekit.runtime.progress_bar import shown
from probekit.runtime.temporary import temporary_folder
from probekit.runtime.workers import worker_processes
from probekit.selection.choose_C import make_settings
from probekit.selection.protocol import Protocol, resolve_protocol

DRAWS = 5  # default number of draws for per_class


@checked
def sweep(
    features: Features | Mapping[str, ArrayLike] | Sequence[ArrayLike] | str | Path,
    y: ArrayLike | None = None,
    out: str | Path | None = None,
    protocol: Protocol | str = "igpt",
    Cs: Sequence[float] | None = None,
    layers: str | Sequence[str | int] | None = None,
    series: str | None = None,
    seeds: int | Sequence[int] | None = None,
    train_rows: Sequence[int] | int | None = None,
    per_class: Sequence[int] | int | None = None,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] = "auto",
    checks: Sequence[str] = (),
    probe: str | None = None,
    workers: int = 1,
    parallel: Literal["layers", "rows"] = "layers",
    progress: Progress | bool | None = None,
) -> Results:
    """Probe every layer: choose C on held-out training rows, refit, test once, and append one record per probe.

    Repeat the call to resume after an interruption; several processes may run it at once on the same folder.

    Parameters
    ----------
    features : FeatureStore, str, Path, or mapping from layer name to array (N, D)
        The feature file, or features of every layer in memory, shallow to deep.
    y : array of int (N,)
        Labels of features in memory. A stratified 20 % of the rows becomes the test split (`probekit.datasets.splits`);
        for other splits see `MemoryStore`.
    out : str or Path
        Folder of results.jsonl and probes/; by default that of the feature file, and for arrays a temporary one.
    protocol : Protocol or str
        igpt, dinov2-45, clip-coarse-fine, kornblith or sgd-imagenet.
    Cs : sequence of float
        Penalties that replace the protocol's, in scikit-learn's convention for C.
    layers : str or sequence of str or int
        Names or globs of layers, for example 04 or '0*'; by default all.
    series : str
        Name of the curve in figures and tables; by default the encoder's name.
    seeds : int or sequence of int
        Number of repetitions, by default 1, or 5 with per_class. Seed 0 is the stored split; the others redraw the
        validation split and resample the training rows. With per_class or train_rows each seed draws different rows.
    train_rows : int or sequence of int
        Use only this many labelled rows, train and validation together, in class proportion. With several numbers, each
        in turn, for a curve of accuracy against labels.
    per_class : int or sequence of int
        Use only this many labelled rows of each class (few-shot), drawn separately by each seed; several numbers as for
        train_rows. Cannot be combined with train_rows.
    backend : str
        Solver backend. Every solution is checked against our objective.
    device : str
        Device of the solver: cpu, cuda, cuda:1.
    dtype : str
        Precision of the solver; auto uses float64 if that costs nothing.
    checks : sequence of str
        Additional cheap probes of every layer: knn (nearest neighbours), ridge, or another kind of
        `probekit.probes.PROBES` that reads a layer.
    probe : str
        Kind of probe instead of the protocol's; attentive (AIM) needs a file extracted from tokens:igpt:RUN.
    workers : int
        Processes that share the work and the cores. One per core speeds up small fits (thousands of rows, hundreds of
        columns); a large fit already uses all cores.
    parallel : str
        How processes started by torchrun divide the work: by layers (each fits different ones), or by the rows of one
        layer that is too large for one process.
    progress : callable or bool
        Called with (fits done, total fits), or for an SGD protocol with steps. True shows a progress bar.

    Returns
    -------
    Results
        The records of this call. `Results(folder)` contains all records of the folder.

    Raises
    ------
    UserError
        Features, labels, layers or penalties are unusable, or `out` has a series of this name with different settings.
    """
    if per_class is not None and train_rows is not None:
        raise UserError("per_class and train_rows were both given; give only one of them.")
    sizes: list[tuple[int | None, int | None]] = [(rows, None) for rows in _listed("train_rows", train_rows)]
    if per_class is not None:
        sizes = [(None, few) for few in _listed("per_class", per_class)]
    resolved = resolve_protocol(protocol, Cs)
    own = resolved.probe
    kinds = list(dict.fromkeys([probe or own, *checks]))
    check_kinds(kinds, ("layer", "tokens"), resolved)
    if parallel == "rows" and (workers != 1 or not all(PROBES[kind].shards for kind in kinds)):
        raise UserError("parallel='rows' supports linear probes only; remove probe, checks and workers.")
    if isinstance(y, str | Path):  # sweep(file, folder)
        if out is not None:
            raise UserError(f"Two folders for results were given, {y} and {out}; write out=FOLDER once.")
        y, out = None, check_kind("out", y, str | Path, "sweep")
    if isinstance(features, Sequence) and not isinstance(features, str):  # arrays, shallow to deep
        features = {f"{number:02d}": X for number, X in enumerate(features)}
    if isinstance(features, Mapping) and not features:
        raise UserError("features has no layers; give a dict or list of one or more arrays (rows, width).")
    if isinstance(features, Mapping):
        features = from_arrays(features, y)
    elif not isinstance(features, Features | str | Path):
        raise UserError(f"features is a {type(features).__name__}; give a feature file, or a dict or list of arrays.")
    elif y is not None:
        raise UserError("y was given with a feature file, which already contains labels; omit y.")
    if out is None and isinstance(features, MemoryStore):
        out = temporary_folder()
    runner = Runner(features, out, resolved, None, series, make_settings(backend, device, dtype, parallel))
    names = choose_names(runner.store, layers)
    draws = seed_list((DRAWS if per_class else 1) if seeds is None else seeds)
    jobs = [
        Job((layer,), seed, rows, "" if kind == own else kind, few)
        for rows, few in sizes
        for kind in kinds
        for seed in draws
        for layer in names
    ]
    for job in jobs:
        runner.widths(job)  # raises if a probe reads tokens but the features are pooled
    again = {"Cs": Cs, "layers": layers, "series": runner.series, "seeds": seeds, "train_rows": train_rows}
    again |= {"per_class": per_class, "checks": checks, "probe": probe}
    again |= {"backend": backend, "device": device, "dtype": dtype}
    helpers = worker_processes(workers, sweep, runner.path_for(workers), out=runner.out, protocol=protocol, **again)
    with helpers, shown(progress, "sweep", "fits") as show:
        runner.run(jobs, show)
    keys = {runner.identity(job).key for job in jobs}
    results = Results(runner.out).only(keys)
    if others := sorted({record.series for record in results} - {runner.series}):
        warnings.warn(
            f"{runner.out} contains these probes as series {', '.join(others)}, so {runner.series!r} was not recorded; "
            "use another out for the new name.",
            stacklevel=3,
        )
    warn_unconverged([record for record in results if record.tunes == "C"])
    return results


def _listed(name: str, sizes: Sequence[int] | int | None) -> list[int | None]:
    if isinstance(sizes, Sequence) and not sizes:
        raise UserError(f"{name} is empty; give one or more numbers of rows, or omit it.")
    return list(sizes) if isinstance(sizes, Sequence) else [sizes]


TEST_SHARE = 0.2  # of arrays given without a test split


def from_arrays(layers: Mapping[str, ArrayLike], y: ArrayLike | None) -> MemoryStore:
    """Features in memory with a stratified test split.

    Raises
    ------
    UserError
        Labels are missing, or their number or type is wrong.
    """
    if y is None:
        raise UserError("Arrays were given without labels; write sweep({'layer1': X1, 'layer2': X2}, y).")
    labels, arrays = plain_array(y, "y"), {name: plain_array(X, f"layer {name}") for name, X in layers.items()}
    MemoryStore({"train": (arrays, labels)})  # check shapes and dtypes before splitting
    rows = dict(zip(("train", "test"), stratified_holdout(labels, TEST_SHARE, 0), strict=True))
    splits = {name: ({key: X[row] for key, X in arrays.items()}, labels[row]) for name, row in rows.items()}
    return MemoryStore(splits, {"name": "features"}, {"name": "arrays"}, rows)


def choose_names(store: Features, layers: str | Sequence[str | int] | None) -> list[str]:
    """Layer names, shallow to deep, from None (all), names, globs, depths as text or indices of the store.

    Raises
    ------
    UserError
        A layer does not exist.
    """
    if layers is None:
        return list(store.layers)
    if not isinstance(layers, str | Sequence) or not layers:
        raise UserError(f"layers is {layers!r}; give one or more of {', '.join(store.layers)}, or omit it.")
    found = set()
    for layer in [layers] if isinstance(layers, str) else layers:
        matched: list[str] = []
        if isinstance(layer, str):
            matched = [name for name in store.layers if fnmatch.fnmatchcase(name, layer)]
            if not matched and re.fullmatch("[0-9]{1,9}", layer):  # names begin with the depth, in at least two digits
                matched = [name for name in store.layers if re.fullmatch(f"0*{int(layer)}(_.*)?", name)]
            if not matched and set("*?[") & set(layer):
                raise UserError(f"No layer matches {layer!r}; choose from {', '.join(store.layers)}.")
        found |= set(matched or [store.layer(layer)])
    return [name for name in store.layers if name in found]
