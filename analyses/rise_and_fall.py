"""Does the curve rise and then fall, in every seed, above raw pixels and above random weights?

    python -m analyses.rise_and_fall RESULTS... [--model igpt] [--random random] [--pixels pixels] [--out FOLDER]

A series belongs to a role by how its name begins: igpt-s0, igpt-s1, ... are seeds of one recipe, random-s0 the same
network untrained, pixels-12 raw pixels. A seed counts when the software's verdict is "rises then falls", the layer
chosen on held-out rows beats the last one by 2 points and p < .01, and it beats every pixel series and the best layer
of every random one at p < .01 (exact McNemar tests on the same rows). --out gets verdicts.json and depth_curve.svg.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyses import command_line, over_runs, shown, start
from igpt_model import atomic
from probekit.reports.figures.style import FLAT, MODELS, QUIET, RANDOM, save_figure, style
from probekit.results.paired import paired_correct
from probekit.results.record import Record
from probekit.results.results import Results, compare
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_GAIN, ALPHA = 2.0, 0.01  # points above the last layer; of each test: all must pass, so none is corrected


def role(results: Results, prefix: str) -> list[str]:
    """The series whose names begin with a prefix, in order."""
    return sorted(name for name in results.series if name.startswith(prefix))


def layers(results: Results, series: str) -> list[Record]:
    """The records of a series' single layers, shallow to deep."""
    return sorted(results.of(series, "layer"), key=lambda record: record.depth or 0)


def seed_verdict(results: Results, name: str, controls: Sequence[str]) -> dict[str, Any]:
    """The verdict on one series, in percent and points."""
    verdict = results.verdict(name)
    curve = verdict.curve
    best = curve.records[curve.peak]
    others = {"last": layers(results, name)[-1]}
    # a control gets its best layer on test rows, which is the harder comparison
    others |= {control: max(layers(results, control), key=lambda record: record.accuracy) for control in controls}
    against, conditions = {}, {"rises then falls": verdict.falls and verdict.p < ALPHA}
    for other, record in others.items():
        one = compare(best, record)
        numbers = (round(points, 2) for points in one.points)
        against[other] = {**dict(zip(("points", "low", "high"), numbers, strict=True)), "p": one.p}
        conditions[other] = one.points[0] >= (LEAST_GAIN if other == "last" else 0) and one.p < ALPHA
    percent = {"accuracy": curve.values, "low": curve.low, "high": curve.high}
    return {
        "series": name,
        "dataset": verdict.dataset,
        **{name: np.round(100 * values, 2).tolist() for name, values in percent.items()},
        "certified": bool(curve.converged.all()),
        "chosen": verdict.peak_depth,
        "shape": verdict.shape,
        "p": verdict.p,
        "sentences": verdict.sentences(),
        "against": against,
        "conditions": conditions,
        "counts": all(conditions.values()),
    }


def study(results: Results, model: str, random: str, pixels: str) -> dict[str, Any]:
    """Every seed, and the seeds together (mean, 95 % over runs, then rows; two or more of them)."""
    models, controls = role(results, model), [*role(results, pixels), *role(results, random)]
    if not models:
        raise UserError(f"No series name begins with {model!r}; there are {', '.join(results.series)}.")
    seeds = [seed_verdict(results, name, controls) for name in models]
    found: dict[str, Any] = {"seeds": seeds, "controls": {}, "all count": all(seed["counts"] for seed in seeds)}
    for control in controls:
        found["controls"][control] = [round(100 * record.accuracy, 2) for record in layers(results, control)]
    if len(models) > 1:
        pairs = [paired_correct(results.best(name), layers(results, name)[-1]) for name in models]
        together = over_runs.gain(*zip(*pairs, strict=True))
        found["chosen minus last, all seeds"] = [round(v, 2) for v in (together.mean, together.low, together.high)]
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The study as text."""
    printed = []
    for seed in found["seeds"]:
        printed += seed["sentences"]
        for what, one in seed["against"].items():
            interval = f"[{one['low']:+.1f}, {one['high']:+.1f}]"
            printed.append(f"  against {what}: {one['points']:+.1f} {interval} points, p = {one['p']:.2g}")
        failed = [name for name, met in seed["conditions"].items() if not met]
        printed.append(f"  counts: {'yes' if seed['counts'] else 'no (' + ', '.join(failed) + ')'}")
    if "chosen minus last, all seeds" in found:
        mean, low, high = found["chosen minus last, all seeds"]
        printed.append(f"chosen layer minus last, all seeds: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points")
    return printed


def figure(found: dict[str, Any]) -> "Figure":
    """Every seed's curve with 95 % bars and its chosen layer ringed; random weights; raw pixels as a line."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 3.7))
    axes = drawn.add_axes((0.08, 0.19, 0.89, 0.72))
    depths = np.arange(len(found["seeds"][0]["accuracy"]))
    for number, seed in enumerate(found["seeds"]):
        accuracy, colour = seed["accuracy"], MODELS[number % len(MODELS)][0]
        shift = 0.06 * (number - (len(found["seeds"]) - 1) / 2)
        axes.vlines(depths + shift, seed["low"], seed["high"], color=colour, linewidth=1, alpha=0.6)
        axes.plot(
            depths + shift, accuracy, "o-", color=colour, markersize=3.5, linewidth=1.4, label=shown(seed["series"])
        )
        at = seed["chosen"]
        axes.scatter(at + shift, accuracy[at], s=80, facecolors="none", edgecolors=colour, linewidth=1.2, zorder=3)
    for name, values in found["controls"].items():
        if len(values) == 1:
            level = f"{shown(name)}: {values[0]:.1f}"
            axes.axhline(values[0], color=FLAT[0], linewidth=1.1, linestyle="--", label=level)
        else:
            axes.plot(values, color=RANDOM[0], marker="v", markersize=3, linewidth=1, linestyle=":", label=shown(name))
    axes.set_xticks(depths)
    axes.set_xlabel("layer (0 is the embedding); bars: 95 %; ring: layer chosen on validation rows", color=QUIET)
    axes.set_title("Test accuracy of a linear probe on each layer, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, columnspacing=1.2, handlelength=1.6)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the verdicts; write them and the figure if requested."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--model", default="igpt")
    parser.add_argument("--random", default="random")
    parser.add_argument("--pixels", default="pixels")
    options = parser.parse_args(arguments)
    found = study(Results(*options.results), options.model, options.random, options.pixels)
    print("\n".join(lines(found)))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        atomic.write_text(options.out / "verdicts.json", json.dumps(found, indent=1) + "\n")
        with style():
            save_figure(figure(found), options.out / "depth_curve", ("svg", "png"))


if __name__ == "__main__":
    start(main)
