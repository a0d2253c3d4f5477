"""Calibration of the probes' probabilities, as fitted and with a temperature chosen on held-out rows.

N rows, K classes.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igpt_model import atomic
from probekit.evaluate.runner import Job, Runner
from probekit.features.readable import Features
from probekit.results.measured import CALIBRATION, SCALED, apply_temperature, csv_table, fit_temperature
from probekit.results.metrics import METRICS
from probekit.results.predictions import row_predictions
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError
from probekit.runtime.escape import csv_text
from probekit.runtime.progress import Progress
from probekit.selection.choose_C import make_settings
from probekit.selection.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("ece", "brier", "log_loss")


def calibrate(
    store: Features | str | Path,
    results_dir: str | Path | None = None,
    protocol: str | Protocol = "igpt",
    Cs: Sequence[float] | None = None,
    series: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Calibration error, Brier score and log-loss of every probe, before and after a temperature.

    The temperature is fitted on the validation rows, for a probe with the chosen penalty fitted without them. Scores
    are those of the recorded predictions on every test set.

    Parameters
    ----------
    store : FeatureStore, str or Path
        The feature file that was swept.
    results_dir : str or Path
        Folder of results.jsonl; by default that of the feature file. The table is written beside it.
    protocol : Protocol or str
        The protocol of the sweep.
    Cs : sequence of float
        Penalties of the sweep, if they were not the protocol's.
    series : str
        Name of the curve in the results; by default the encoder's name.
    device : str
        Device of the solver: cpu, cuda, cuda:1.
    progress : callable
        Called with (probes done, total probes).

    Returns
    -------
    pandas.DataFrame
        One row per kind of probe, layers and test set, with means over the seeds. `calibration.csv` has one row per
        seed, and rows of other series in it are kept.

    Raises
    ------
    UserError
        The folder has no record of these features under this protocol, or none with usable validation rows.
    """
    import pandas as pd

    runner = Runner(store, results_dir, protocol, Cs, series, make_settings("torch", device, "auto"))
    same = (runner.store.id, runner.protocol.hash, runner.series)
    mine = [r for r in read_records(runner.out) if (r.identity.feature_id, r.identity.protocol_hash, r.series) == same]
    if not mine:
        raise UserError(
            f"{runner.out} has no probe of these features in series {runner.series!r} under protocol "
            f"{runner.protocol.name}; sweep them first, or give the --protocol, --Cs and --series of the sweep."
        )
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for number, record in enumerate(mine, start=1):
        temperature = held_out_temperature(runner, record)
        if temperature is None:
            left_out.append(f"{'+'.join(record.layers)} of {record.train_rows} rows, seed {record.seed}")
        else:
            rows += [_row(record, test, temperature) for test in (record.test, *record.tests)]
        if progress:
            progress(number, len(mine))
    if left_out:
        problem = f"{'; '.join(left_out[:3])}: a class has validation rows only, so there is no temperature to fit"
        if not rows:
            raise UserError(f"No probe can be calibrated ({problem}); sweep with more rows.")
        warnings.warn(f"Probes left out: {len(left_out)} ({problem}).", stacklevel=2)
    frame, path = pd.DataFrame(rows), runner.out / CALIBRATION
    stored = csv_table(path) if path.is_file() else frame[:0]
    others = stored[~stored["record"].isin(frame["record"])]
    atomic.write_text(path, csv_text(pd.concat([others, frame])))
    mean = frame.drop(columns=["record", "series", "seed"]).groupby(["probe", "layers", "test_set"], sort=False).mean()
    return mean.reset_index()


def _row(record: Record, test: str, temperature: float) -> dict[str, Any]:
    """Scores of a record's stored predictions on a test set, as fitted and with the temperature."""
    predicted = row_predictions(record.on(test))
    y = np.searchsorted(predicted.classes, predicted.labels)
    scaled = apply_temperature(predicted.log_proba, temperature)
    about = {"series": record.series, "probe": record.probe, "layers": "+".join(record.layers), "seed": record.seed}
    before = {name: METRICS[name](predicted.log_proba, y) for name in SCORES}
    after = {f"{name}{SCALED}": METRICS[name](scaled, y) for name in SCORES}
    return {**about, "test_set": test, "temperature": temperature, **before, **after, "record": record.key}


def held_out_temperature(runner: Runner, record: Record) -> float | None:
    """The temperature of a record's probe, fitted on the validation rows after a refit without them.

    None if a rare class has validation rows only.
    """
    own = runner.protocol.probe
    train_rows = None if record.per_class else record.train_rows
    probe = "" if record.probe == own else record.probe
    job = Job(record.layers, record.seed, train_rows, probe, record.per_class)
    split = runner.rows(job)
    if len(np.setdiff1d(split.y[split.is_val], split.y[~split.is_val])):
        return None
    X = runner.features(job)
    Cs = [record.chosen_C] if runner.protocol.Cs else []  # an SGD protocol has learning rates instead
    one = runner.protocol.with_(Cs=Cs, refine=0, selection="val", refit="train")
    fitted = runner.probe(job).fit(X, runner.widths(job), split, one, runner.settings)
    held = np.flatnonzero(split.is_val)
    y = np.searchsorted(fitted.classes, split.y[held])
    return fit_temperature(fitted.predict_log_proba(X[held]), y, split.weights[held])
