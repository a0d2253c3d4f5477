"""`--tracker wandb|mlflow`: log the scalars of a training run or study to an experiment tracker.

The tracker's own settings apply (WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...). The id of its run is stored in
`OUT/tracker.json`, so that a resumed command continues the same run.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from igpt_model import atomic
from igpt_model.checked_json import as_json, read_json
from probekit.runtime.errors import UserError
from probekit.runtime.escape import file_names

Kind = Literal["wandb", "mlflow"]
PROJECT = "probekit"


class Tracker:
    """One run of a tracker; the base class logs nothing."""

    id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at a step."""

    def file(self, path: Path) -> None:
        """Log a file."""

    def close(self, failed: bool) -> None:
        """End the run."""


class _Wandb(Tracker):
    def __init__(self, module: Any, name: str, config: dict[str, Any], out: Path, run_id: str | None) -> None:
        self.run = module.init(project=PROJECT, name=name, config=config, dir=str(out), id=run_id, resume="allow")
        self.id = str(self.run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if values:
            self.run.log(dict(values), step=step)

    def file(self, path: Path) -> None:
        self.run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _Mlflow(Tracker):
    def __init__(self, module: Any, name: str, config: dict[str, Any], out: Path, run_id: str | None) -> None:
        import pandas as pd

        self.module = module
        module.set_experiment(experiment_name=PROJECT)
        if run_id is None:
            self.id = str(module.start_run(run_name=name).info.run_id)
            flat = pd.json_normalize(config).iloc[0].items()  # dotted names; mlflow takes 500 characters of each value
            module.log_params(params={str(name): str(value)[:500] for name, value in flat})
        else:
            self.id = str(module.start_run(run_id=run_id).info.run_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if values:
            self.module.log_metrics(metrics=dict(values), step=step)

    def file(self, path: Path) -> None:
        self.module.log_artifact(local_path=str(path))

    def close(self, failed: bool) -> None:
        self.module.end_run(status="FAILED" if failed else "FINISHED")


@contextmanager
def open_tracker(kind: Kind | None, name: str, config: Mapping[str, Any], out: Path) -> Iterator[Tracker]:
    """Open a run of the tracker for the duration of the block; without a kind, a tracker that does nothing."""
    if kind is None:
        yield Tracker()
        return
    try:
        module = import_module(kind)
    except ModuleNotFoundError:
        raise UserError(f"--tracker {kind} needs the package {kind}: pip install {kind}.") from None
    path = out / "tracker.json"
    known = read_json(path, {"kind": str, "id?": (str, None)}) if path.is_file() else {}
    if known and known["kind"] != kind:
        raise UserError(
            f"{out} already uses --tracker {known['kind']}: give --tracker {known['kind']}, or delete {path}."
        )
    plain = as_json(dict(config), default=str)
    out.mkdir(parents=True, exist_ok=True)
    run: Tracker = (_Wandb if kind == "wandb" else _Mlflow)(module, name, plain, out, known.get("id"))
    atomic.write_json(path, {"kind": kind, "id": run.id})
    try:
        yield run
    except BaseException:
        run.close(failed=True)
        raise
    run.close(failed=False)


def training_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in one of train()'s records, by name."""
    if record["kind"] in ("step", "eval"):
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        return {f"{record['kind']}/{name}": float(value) for name, value in numbers.items()}
    if record["kind"] == "probe":
        accuracy = record["accuracy"]
        layers = {f"probe/layer_{k:02d}": value for k, value in enumerate(accuracy)}
        return layers | {"probe/peak_layer": record["peak"], "probe/last": accuracy[-1], "probe/best": max(accuracy)}
    return {}


def curve_scalars(curves: Any) -> dict[int, dict[str, float]]:
    """Depth curves as scalars, depth in place of the step: {depth: {"DATA/SERIES/accuracy": value}}.

    Trackers refuse most punctuation in these names, so they are written like names of files.
    """
    found: dict[int, dict[str, float]] = {}
    curves = list(curves)
    data, series = _plain_names(c.dataset for c in curves), _plain_names(c.series for c in curves)
    for curve in curves:
        for depth, value in zip(curve.depths, curve.values, strict=True):
            found.setdefault(int(depth), {})[f"{data[curve.dataset]}/{series[curve.series]}/accuracy"] = float(value)
    return found


def _plain_names(texts: Iterable[str]) -> dict[str, str]:
    names = list(dict.fromkeys(texts))
    return dict(zip(names, file_names(names), strict=True))
