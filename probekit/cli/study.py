"""`probekit study`: the library's `study`, with optional logging to an experiment tracker."""

from pathlib import Path
from typing import Any

from probekit.cli.console import note
from probekit.cli.tracker import Kind, curve_scalars, open_tracker

INHERITS = {"study": "probekit.evaluate.study:study"}


def study(
    encoders: list[str],
    on: list[str],
    out: Path,
    tests: tuple[str, ...] = (),
    tracker: Kind | None = None,
    progress: Any = None,
    **settings: Any,
) -> Any:
    """Measure encoders on data sets: features of every layer, probes of single and concatenated layers, a report.

    Raw pixels and the same architectures with random weights are probed for comparison. Resumable.

    Parameters
    ----------
    encoders : list of str
        igpt:RUN, igpt:RUN@STEP, hf:NAME, timm:NAME, torch:package.module:function, pixels, histogram, random:...; the
        options of `extract` follow a #, as in timm:NAME#pool=cls#layers=blocks.*. NAME=ENCODER names its curve.
        Encoders of one NAME are pre-training runs of one model: one curve with mean and interval.
    on : list of str
        Names of `probekit datasets`, folders of images, or archives.
    out : Path
        Folder for features, results and report; it must not contain a different study.
    tests : tuple of str
        An additional test set as NAME=DATASET, repeatable, for example fog=CIFAR-10-C#corruption=fog. The same probes
        are tested on it; it is not used for any choice. Its curves and verdicts are shown next to those of the data
        set's own test rows.
    tracker : str
        Log the curves, with depth as the step, and the report to this experiment tracker, if it is installed.
    """
    from probekit.selection.protocol import resolve_protocol

    # before PyTorch is imported, to report errors at once
    resolve_protocol(settings.get("protocol", "igpt"), settings.get("Cs"))
    from probekit.evaluate.study import study as run_study

    shown = {name: settings.get(name) for name in ("protocol", "seeds", "limit")}
    with open_tracker(tracker, out.name, {"encoders": encoders, "on": on, **shown}, out) as track:
        results = run_study(encoders, list(on), out, tests=list(tests), progress=progress, **settings)
        scalars = curve_scalars(results.curves().values()) if tracker else {}
        for depth, values in sorted(scalars.items()):
            track.log(values, depth)
        track.file(out / "report" / "index.html")
    note(f"report: {(out / 'report' / 'index.html').resolve()}")
    return results
