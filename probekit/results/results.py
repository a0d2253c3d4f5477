"""`Results`: all records of one or several results files, as tables, curves and verdicts; `compare` two of them."""

from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt_model.arguments import WrongType, checked
from probekit.results.curve import Curve, Verdict, depth_curves, layer_name, paired_curves, verdict
from probekit.results.measured import find_metric
from probekit.results.paired import PairedDifference, paired_difference
from probekit.results.record import Record, read_records, results_path
from probekit.results.runs import model_names
from probekit.runtime.errors import UserError, did_you_mean
from probekit.runtime.escape import mathtext

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Results:
    """Records of finished probes.

    Parameters
    ----------
    paths : one or several results files or folders; raises `UserError` for a path without records
    """

    @checked
    def __init__(self, *paths: str | Path):
        if not paths:
            raise UserError(
                "Results needs a results file or folder; use Results.from_records(...) for records in memory."
            )
        self.records: list[Record] = read_records(*paths)
        self.paths = tuple(Path(path) for path in paths)

    @property
    def path(self) -> Path:
        """The (first) results file."""
        if not self.paths:
            raise UserError("These results are in memory and have no folder; sweep with out= to write one.")
        return results_path(self.paths[0])

    @classmethod
    @checked
    def from_records(cls, records: Iterable[Record]) -> "Results":
        """Results from records in memory, for instance those of one data set."""
        results = cls.__new__(cls)
        results.paths, results.records = (), list(records)
        return results

    @checked
    def only(self, keys: Collection[str]) -> "Results":
        """The same results restricted to records with these keys."""
        results = Results.from_records(record for record in self.records if record.key in keys)
        results.paths = self.paths
        return results

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def series(self) -> list[str]:
        """Names of the series, in the order in which they first appear."""
        return list(dict.fromkeys(record.series for record in self.records))

    @checked
    def of(self, series: str | None = None, kind: str | None = None, seed: int | None = 0) -> list[Record]:
        """Records of a series (None: the only one), a kind and a seed (None: all)."""
        if series is None and len(self.series) != 1:
            raise UserError(f"The results contain {len(self.series)} series ({', '.join(self.series)}); name one.")
        series = self.series[0] if series is None else series
        if series not in self.series:
            raise UserError(f"There is no series {series!r}; choose from {', '.join(self.series)}.")
        return [
            r for r in self.records
            if r.series == series and kind in (None, r.kind) and seed in (None, r.seed) and r.train_rows is None
        ]  # fmt: skip

    @checked
    def on(self, test: str) -> "Results":
        """The same probes on another test set, restricted to those that were tested on it."""
        found = [record.on(test) for record in self.records if test == "test" or test in record.tests]
        if not found:
            known = dict.fromkeys(name for record in self.records for name in record.tests)
            raise UserError(f"No probe was tested on {test!r}; the test sets are {', '.join(['test', *known])}.")
        return Results.from_records(found)

    @checked
    def curve(self, series: str | None = None) -> Curve:
        """The depth curve of a series, or of a model with several runs (None: the only one)."""
        if not self.records:
            raise UserError("These results contain no records; run `probekit sweep` first.")
        models = model_names(self.records)
        own = [r for r in self.records if series in (None, r.series, models[r.series])]
        if not own:
            known = list(dict.fromkeys(models.values()))
            hint = did_you_mean(str(series), known)
            if any(str(series) in r.layers for r in self.records):
                hint = " It is a layer: compare two of them as compare(results[0], results[1])."
            raise UserError(f"There is no series {series!r}; choose from {', '.join(known)}.{hint}")
        curves = depth_curves(own)
        if len(curves) != 1:
            named = "These results" if series is None else f"The records of series {series!r}"
            if not curves:
                raise UserError(f"{named} contain no probe of a single layer; run `probekit sweep`.")
            raise UserError(f"{named} have {len(curves)} depth curves; choose a series: {'; '.join(curves)}.")
        return next(iter(curves.values()))

    @checked
    def best(self, series: str | None = None) -> Record:
        """The record of the layer chosen on held-out rows, not by test accuracy; of the first seed or run."""
        curve = self.curve(series)
        return curve.records[curve.peak]

    @checked
    def curves(self, metric: str = "top1") -> dict[str, Curve]:
        """The depth curve of every series that has single layers."""
        return depth_curves(self.records, metric=metric)

    @checked
    def verdict(self, series: str | None = None) -> Verdict:
        """Whether accuracy of a series rises and then falls with depth."""
        return verdict(self.curve(series))

    @checked
    def compare(self, a: str, b: str) -> PairedDifference:
        """Paired comparison of the best layers of two series, over their seeds or runs."""
        return paired_curves(self.curve(a), self.curve(b))

    def frame(self) -> "pd.DataFrame":
        """One row per record: layers, choices, test metrics, and whether the fit converged."""
        import pandas as pd

        return pd.DataFrame([_row(record) for record in self.records])

    @checked
    def plot_depth(self, ax: Any = None, metric: str = "top1") -> "Axes":
        """Draw a metric over depth, one line per series (the mean of its seeds or runs), with pointwise 95 % bars.

        The layer chosen on held-out rows is ringed, and uncertified fits are crossed. A series of one layer (raw
        pixels) is a dashed horizontal line.
        """
        import matplotlib.pyplot as plt

        if ax is not None and not hasattr(ax, "errorbar"):
            raise WrongType(f"ax is of type {type(ax).__name__}; give matplotlib axes.")
        axes: Axes = ax if ax is not None else plt.subplots(figsize=(6, 4))[1]
        curves = self.curves(metric)
        for series, curve in curves.items():
            name = mathtext(series)
            if len(curve.depths) == 1:
                axes.axhline(curve.values[0], linestyle="--", color="0.5", label=name)
                continue
            errors = [curve.values - curve.low, curve.high - curve.values]
            bars = axes.errorbar(curve.depths, curve.values, yerr=errors, marker="o", markersize=3, label=name)
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": bars.lines[0].get_color(), "s": 90, "zorder": 3}
            axes.scatter(curve.depths[curve.peak], curve.values[curve.peak], **ring)
            doubtful = ~curve.converged
            axes.scatter(curve.depths[doubtful], curve.values[doubtful], marker="x", color="black", zorder=4)
        first = {layer_name(curve.records[0]) for curve in curves.values() if len(curve.depths) > 1}
        axes.set_xlabel(f"layer (0 is {name})" if len(first) == 1 and (name := first.pop()) else "layer")
        axes.set_ylabel(find_metric(metric).words)
        axes.legend()
        return axes

    @checked
    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML report (see `write_report`); by default into `report/` beside the results."""
        page: Path = import_module("probekit.reports").write_report(self.paths, out or self.path.parent / "report")
        return page

    def __repr__(self) -> str:
        where = ", ".join(str(path) for path in self.paths) or "memory"
        return f"Results({len(self)} records, series {', '.join(self.series)}, in {where})"

    def _repr_html_(self) -> str:
        """The table shown in a notebook: one row per record, with the most important columns."""
        shown = self.frame().reindex(columns=["series", "dataset", "layers", "C", "top1", "low", "high", "converged"])
        return str(shown.to_html(index=False, float_format="{:.4g}".format))


def _row(r: Record) -> dict[str, Any]:
    names = {"top1_low": "low", "top1_high": "high"}
    return {
        "series": r.series,
        "dataset": r.dataset.get("name"),
        "kind": r.kind,
        "layers": "+".join(r.layers),
        "depth": r.depth,
        "width": r.width,
        "seed": r.seed,
        "train_rows": r.train_rows,
        "protocol": r.protocol["name"],
        "selection": r.selection,
        "C": r.chosen_C,
        "val_accuracy": r.selection_score[0],
        **{names.get(name, name): value for name, value in r.metrics.items()},
        "train_accuracy": r.train_accuracy,
        "converged": r.is_converged,
        "at_grid_edge": r.at_grid_edge,
        "seconds": r.seconds,
        "key": r.key,
    }


def compare(
    a: Record | Results | str | Path,
    b: Record | Results | str | Path,
    series_a: str | None = None,
    series_b: str | None = None,
) -> PairedDifference:
    """Compare two records, or the best layers (chosen on held-out rows) of two results, on the test rows they share.

    Parameters
    ----------
    a : Record, Results, str or Path
        A results folder or file.
    b : Record, Results, str or Path
        Another one, or the same one for another series.
    series_a : str
        Series of the first, if it contains several.
    series_b : str
        Series of the second.

    Returns
    -------
    PairedDifference
        Over all seeds or pre-training runs if a series has several.

    Raises
    ------
    UserError
        The two have no test rows in common, or different labels for one.
    """
    first, second = _side(a, series_a, "series_a"), _side(b, series_b, "series_b")
    if isinstance(first, Curve) and isinstance(second, Curve):
        return paired_curves(first, second)
    return paired_difference(*(one.records[one.peak] if isinstance(one, Curve) else one for one in (first, second)))


def _side(side: Record | Results | str | Path, series: str | None, flag: str) -> Record | Curve:
    if isinstance(side, Record):
        return side
    results = side if isinstance(side, Results) else Results(side)
    if series is None and len(known := results.curves()) > 1:
        raise UserError(f"The results contain several series ({', '.join(known)}): name one as {flag}.")
    return results.curve(series)
