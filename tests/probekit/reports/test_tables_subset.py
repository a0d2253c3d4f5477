"""Where a row set lies beside a feature file, the report has accuracies with and without it; elsewhere no such file."""

import shutil

import pandas as pd
import pytest

from probekit.reports import write_report
from probekit.results.predictions import row_predictions
from probekit.results.record import read_records
from probekit.results.subset_metrics import RowSet, row_set_path


def test_no_set_no_table(run_folder, tmp_path):
    write_report(run_folder, tmp_path / "report")
    assert not list((tmp_path / "report").glob("without*"))


def test_accuracy_with_and_without(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    records = read_records(folder)
    (folder / "features").mkdir(exist_ok=True)
    record = next(r for r in records if r.kind == "layer" and r.n_layers > 1)
    rows = row_predictions(record)
    wrong = rows.row_ids[~rows.correct][:40]
    RowSet("near-duplicates", record.dataset["name"], "test", tuple(sorted(wrong.tolist()))).save(
        row_set_path(folder / record.feature_file)
    )
    page = write_report(folder, tmp_path / "report")
    frame = pd.read_csv(tmp_path / "report" / "without_near_duplicates.csv").set_index("key")
    line = frame.loc[record.key]
    assert line["n_excluded"] == 40
    assert line["top1_without"] == pytest.approx(rows.correct.sum() / (len(rows.correct) - 40))
    of_the_file = {r.key for r in records if r.feature_file == record.feature_file}
    assert set(frame.index) <= of_the_file
    assert "without_near_duplicates.md" in page.read_text()
    assert "without_near_duplicates.tex" in page.read_text()
