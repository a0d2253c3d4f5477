"""`probekit study`: encoders on data sets, from images to the report, in one resumable command."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from probekit.cli.console import say
from probekit.cli.progress import progress
from probekit.cli.sweep import Penalties, show_curves
from probekit.cli.tracker import Kind, curve_scalars, open_tracker
from probekit.evaluate.study import Progress
from probekit.results.results import Results
from probekit.runtime.errors import UserError


def study(
    *encoders: str,
    on: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    out: Path,
    protocol: str = "igpt",
    Cs: Penalties = None,
    window: int = 5,
    greedy_width: int | None = None,
    controls: bool = True,
    limit: int | None = None,
    seeds: int = 1,
    root: Path | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    backend: Literal["torch", "sklearn", "cuml"] = "torch",
    device: str = "cpu",
    dtype: Literal["float32", "float64"] | None = None,
    tracker: Kind | None = None,
) -> None:
    """Extract, sweep, join layers, probe the controls and write the report. Run again after a kill it goes on.

    Parameters
    ----------
    encoders
        igpt:RUN, igpt:RUN@STEP, hf:NAME, timm:NAME, torch:package.module:function, pixels, histogram, random:...; each
        as NAME=ENCODER to name its curve.
    on
        Data sets: names of `probekit datasets`, folders of images, or archives.
    out
        Folder for features, results and report.
    protocol
        igpt, dinov2-45, clip-coarse-fine or kornblith.
    Cs
        Penalties in place of the protocol's, as scikit-learn's C: --Cs 0.01 --Cs 1.
    window
        Neighbouring layers joined round the best one; the paper joins five; 0 joins nothing.
    greedy_width
        Columns that the greedy choice of layers may use; as many as the window has unless given, 0 for none.
    controls
        Also probe raw pixels, and the same architectures with random weights.
    limit
        At most this many images of each split, classes in proportion.
    seeds
        How often: seed 0 is the stored split, the others redraw the val split and resample training rows.
    root
        Where the data sets lie, for those that are not embedded.
    batch_size
        Images a batch; 128, or what the feature file was begun with.
    workers
        Processes that decode and prepare images; 0: this one does.
    backend
        Who solves; every solution is certified by our own objective.
    device
        Where encoders and solver run: cpu, cuda, cuda:1.
    dtype
        Precision of the solver; that of `probekit sweep` unless given.
    tracker
        Log the curves, with depth as the step, and the report to this experiment tracker, where it is installed.
    """
    from probekit.evaluate.study import study as run_study

    if not encoders:
        raise UserError("No encoder was given; write for example: probekit study igpt:RUN --on cifar10 --out study.")
    settings = {"encoders": list(encoders), "on": list(on), "protocol": protocol, "seeds": seeds, "limit": limit}
    with open_tracker(tracker, out.name, settings, out) as track:
        with _stages() as show:
            results = run_study(
                list(encoders),
                list(on),
                out,
                protocol,
                Cs=Cs,
                window=window,
                greedy_width=greedy_width,
                controls=controls,
                limit=limit,
                seeds=seeds,
                root=root,
                batch_size=batch_size,
                workers=workers,
                backend=backend,
                device=device,
                dtype=dtype,
                progress=show,
            )
        curves = [curve for folder in results.paths for curve in Results(folder).curves().values()]
        for depth, values in sorted(curve_scalars(curves).items()):
            track.log(values, depth)
        track.file(out / "report" / "index.html")
    for folder in results.paths:
        show_curves(folder)
    say(f"page: {(out / 'report' / 'index.html').resolve()}")


@contextmanager
def _stages() -> Iterator[Progress]:
    """A progress bar a stage: the next one begins when something else is being done."""
    with ExitStack() as bars:
        current: list[tuple[str, object]] = []

        def show(what: str, unit: str, done: int, total: int) -> None:
            if not current or current[0][0] != what:
                bars.close()
                current[:] = [(what, bars.enter_context(progress(what, unit)))]
            current[0][1](done, total)  # type: ignore[operator]

        yield show
