"""Is the fall due to palette size relative to width: does it grow with V / D over runs of several palettes and widths?

    python -m analyses.palette_width RESULTS... [--seeds 1 2] [--out FOLDER]

The fall of a run is the accuracy of its layer chosen on held-out rows minus that of its last one, on test rows. Prints
a line a run, the mean of every cell, and the rank correlation (Spearman) of fall and V / D over the runs of --seeds
(all unless given), with a one-sided p of permuting the falls of a seed over its cells. V (colours), D (width) and the
training seed are read from the records. --out gets palette_width.csv and .svg.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyses import command_line, start, write
from probekit.reports.figures.style import MODEL_MARKERS, MODELS, QUIET
from probekit.results.results import Results, compare

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DRAWS = 100_000


def falls(results: Results) -> "pd.DataFrame":
    """Columns D, V, seed, chosen, accuracy (percent), fall, low, high (points, 95 %), p; one row per series."""
    import pandas as pd

    rows = []
    for name in results.series:
        best, last = results.best(name), max(results.of(name, "layer"), key=lambda record: record.depth or 0)
        config, one = best.encoder["config"], compare(best, last)
        seed = best.encoder["training"]["train"]["seed"]
        measured = [100 * value for value in (best.accuracy, one.difference, one.low, one.high)]
        rows.append([config["n_embd"], config["vocab_size"], seed, best.depth, *measured, one.p])
    frame = pd.DataFrame(rows, columns=["D", "V", "seed", "chosen", "accuracy", "fall", "low", "high", "p"])
    return frame.sort_values(["D", "V", "seed"], ignore_index=True)


def rank_correlation(frame: "pd.DataFrame") -> tuple[float, float]:
    """Spearman's correlation of fall and V / D, and the share of permutations within seeds that reach it."""
    from scipy.stats import rankdata

    ratio, fall = (rankdata(values) - (len(frame) + 1) / 2 for values in (frame.V / frame.D, frame.fall))
    generator = np.random.default_rng(0)
    drawn = np.zeros(DRAWS)
    for rows in frame.reset_index(drop=True).groupby("seed").indices.values():
        drawn += generator.permuted(np.tile(fall[rows], (DRAWS, 1)), axis=1) @ ratio[rows]
    scale = float(np.sqrt((ratio**2).sum() * (fall**2).sum()))
    # the permutation that was observed counts as one of them; a part in 10^9 is rounding
    p = (1 + int((drawn >= ratio @ fall - 1e-9 * scale).sum())) / (1 + DRAWS)
    return float(ratio @ fall) / scale, p


def figure(frame: "pd.DataFrame") -> "Figure":
    """Fall against V / D, one colour per width; bars are 95 % over test rows, the line joins the means of cells.

    Widths of the same ratio, and seeds of a width, stand beside one another.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = drawn.subplots()
    axes.axhline(0, color=QUIET, linewidth=0.9)
    ratio = frame.V / frame.D
    beside = frame.groupby(ratio).D.transform(lambda widths: widths.rank(method="dense") - (widths.nunique() + 1) / 2)
    place = ratio * 1.18**beside
    for number, (width, own) in enumerate(frame.groupby("D")):
        colour = MODELS[number][0]
        at = place[own.index] * 1.05 ** (own.seed - 1)
        axes.vlines(at, own.low, own.high, color=colour, linewidth=0.9, alpha=0.6)
        axes.plot(at, own.fall, linestyle="", color=colour, marker=MODEL_MARKERS[number], markersize=4)
        means = own.groupby(place[own.index]).fall.mean()
        axes.plot(means.index, means, linewidth=1.4, color=colour, label=f"width {width}")
    axes.set_xscale("log", base=2)
    ratios = sorted(set(ratio))
    axes.set_xticks(ratios, [f"{x:g}" if x >= 1 else f"1/{1 / x:g}" for x in ratios])
    axes.set_xlabel("colours of the palette / width of the model; a point a run, line: means")
    axes.set_title("Chosen layer minus last layer, points; bars: 95 % over test rows")
    axes.legend(loc="upper left", ncols=frame.D.nunique())
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Print runs, cells and the rank correlation; write table and figure if requested."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--seeds", nargs="*", type=int)
    options = parser.parse_args(arguments)
    frame = falls(Results(*options.results))
    print(frame.round(3).to_string(index=False))
    print(frame.groupby(["D", "V"]).fall.agg(["mean", "std", "size"]).round(2))
    tested = frame if options.seeds is None else frame[frame.seed.isin(options.seeds)]
    rho, p = rank_correlation(tested)
    print(f"rank correlation of fall and V / D over {len(tested)} runs: {rho:+.2f}, one-sided p = {p:.2g}")
    if options.out:
        write(options.out / "palette_width", frame.round(4), figure)


if __name__ == "__main__":
    start(main)
