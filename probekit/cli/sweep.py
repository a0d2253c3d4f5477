"""`probekit sweep`: probe every layer of a feature file over the protocol's penalties."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from probekit.cli.console import say
from probekit.cli.progress import progress

if TYPE_CHECKING:
    from probekit import Results

DRAWS = 5
"""Draws of a few labelled rows, unless --seeds says how many."""
Penalties = Annotated[tuple[float, ...] | None, Parameter(name="--Cs")]


def sweep(
    features: Path,
    /,
    *,
    out: Path | None = None,
    protocol: str = "igpt",
    Cs: Penalties = None,
    layers: tuple[str, ...] | None = None,
    series: str | None = None,
    seeds: int | None = None,
    train_rows: int | None = None,
    per_class: int | None = None,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["auto", "float32", "float64"] = "auto",
    checks: tuple[Literal["knn", "ridge", "class-mean"], ...] = (),
    probe: Literal["linear", "knn", "ridge", "class-mean", "attentive"] = "linear",
    workers: int = 1,
    parallel: Literal["layers", "rows"] = "layers",
) -> None:
    """Probe every layer and append a record each to results.jsonl. Resumes; several processes may share the work.

    Parameters
    ----------
    features
        The feature file.
    out
        Folder of results.jsonl and probes/; that of the feature file unless given.
    protocol
        igpt, dinov2-45, clip-coarse-fine, kornblith or sgd-imagenet.
    Cs
        Penalties in place of the protocol's, as scikit-learn's C: --Cs 0.01 --Cs 1.
    layers
        Names or globs of layers: --layers 04 --layers '0*'; all unless given.
    series
        Name of the curve in figures and tables; the encoder's name unless given.
    seeds
        How often, once unless given: seed 0 is the stored split, the others redraw the val split and resample training
        rows. With --per-class or --train-rows each draws rows of its own.
    train_rows
        Use only so many labelled rows, drawn by class.
    per_class
        Use only so many labelled rows of each class (few-shot); --seeds says how many draws, five unless given.
    backend
        Who solves; every solution is certified by our own objective.
    device
        Where the solver runs: cpu, cuda, cuda:1.
    dtype
        Precision of the solver; auto is float64 where that costs nothing.
    checks
        Other kinds of probes on every layer beside the protocol's: --checks knn --checks ridge --checks class-mean.
    probe
        Kind of probe in place of the protocol's own; attentive (AIM's) reads a file extracted from tokens:igpt:RUN.
    workers
        Processes that share the work and the cores: small fits gain by one a core, large ones fill all cores alone.
    parallel
        What processes started by torchrun share: layers (each fits others), or rows of one layer too large for one.
    """
    from probekit import FeatureStore
    from probekit.evaluate.sweep import sweep as sweep_layers

    store = FeatureStore.open(features)
    with progress("sweep", "fits") as show:
        results = sweep_layers(
            store,
            features.parent if out is None else out,
            protocol,
            Cs=Cs,
            layers=None if layers is None else matching(store.layers, layers),
            series=series,
            seeds=seeds or (DRAWS if per_class else 1),
            train_rows=train_rows,
            per_class=per_class,
            backend=backend,
            device=device,
            dtype=dtype,
            checks=checks,
            probe=None if probe == "linear" else probe,
            workers=workers,
            parallel=parallel,
            progress=show,
        )
    show_curves(results.path.parent)
    say_plans(results)
    say(f"records: {results.path} (next: probekit concat {features}, probekit report {results.path.parent})")


def matching(names: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """The names that equal or match one of the patterns, in order; a pattern without a match stays as it is."""
    from fnmatch import fnmatchcase

    kept = {name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)}
    strangers = [p for p in wanted if not any(fnmatchcase(name, p) for name in names)]
    return [*(name for name in names if name in kept), *strangers]


def say_plans(results: "Results") -> None:
    """How the solver went about the grids: one sentence for each way it chose."""
    for plan in dict.fromkeys(record.plan for record in results if record.plan):
        say(f"plan: {plan}")


def show_curves(folder: Path) -> None:
    """Draw the depth curves of a results folder in the terminal, each with its two sentences."""
    from probekit.reports.panels import build_panels, collect_records
    from probekit.reports.terminal import print_panel

    for panel in build_panels(collect_records(folder)):
        print_panel(panel)
