"""Does a lower pre-training loss mean better features (the paper's figure 3: yes, within a run and between sizes)?

    python -m analyses.loss_vs_probe RESULTS_OR_RUN...

RESULTS of sweeps over several checkpoints of a run (`igpt:RUN@STEP`), whose metrics.jsonl is read for the validation
loss; or a RUN folder with probes made while training (`probekit train --probe-every`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from igpt_model.training.run_log import read_metrics
from probekit.cli.watch import read_probes
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import Panel
from probekit.results.record import RESULTS_NAME, Record


class Point(NamedTuple):
    """A checkpoint: nats a pixel on validation pictures, accuracy of the best layer in percent."""

    run: str
    step: int
    loss: float
    layer: int
    accuracy: float


def validation_loss(record: Record) -> float | None:
    """Loss of the checkpoint that a record's features came from, as its run measured it last by then."""
    place, step = record.encoder.get("checkpoint"), record.encoder.get("step")
    return None if place is None or step is None else loss_at(Path(place).parents[1], int(step))


def loss_at(run: Path, step: int) -> float | None:
    """The newest validation loss of a run up to a step."""
    losses = [r["val_loss"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval" and r["step"] <= step]
    return losses[-1] if losses else None


def swept_points(panel: Panel) -> list[Point]:
    """The panel's checkpoints with a known loss."""
    found = []
    for series in panel.models:
        record = series.records[series.peak]
        loss = validation_loss(record)
        if loss is not None:
            run = str(Path(record.encoder["checkpoint"]).parents[1])
            accuracy = float(series.values[series.peak])
            found.append(Point(run, record.encoder["step"], loss, int(series.depths[series.peak]), accuracy))
    return found


def watched_points(run: Path) -> list[Point]:
    """The checkpoints of a run that were probed while it trained."""
    pairs = [(record, loss_at(run, record["step"])) for record in read_probes(run)]
    return [
        Point(str(run), r["step"], loss, r["peak"], 100 * r["accuracy"][r["peak"]])
        for r, loss in pairs
        if loss is not None
    ]


def lines(points: Sequence[Point]) -> list[str]:
    """One line a checkpoint, then each run's rank correlation."""
    from scipy.stats import spearmanr

    found = []
    for run in dict.fromkeys(point.run for point in points):
        own = sorted((p for p in points if p.run == run), key=lambda p: p.step)
        found.append(run)
        found += [f"  step {p.step:>8}  loss {p.loss:.4f}  layer {p.layer:2d}  {p.accuracy:5.1f} %" for p in own]
        if len({p.loss for p in own}) > 2 and len({p.accuracy for p in own}) > 1:
            rho = spearmanr([p.loss for p in own], [p.accuracy for p in own]).statistic
            found.append(f"  rank correlation of loss and accuracy {rho:+.2f} over {len(own)} checkpoints")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results or runs and print loss beside accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    swept = [path for path in options.folders if path.is_file() or (path / RESULTS_NAME).is_file()]
    points = [p for panel in (build_panels(collect_records(swept)) if swept else []) for p in swept_points(panel)]
    points += [p for path in options.folders if path.is_dir() for p in watched_points(path)]
    print("\n".join(lines(points)) or "No checkpoint with both a validation loss and a probe was found.")


if __name__ == "__main__":
    main()
