"""The notebook page runs line by line; names complete; what a cell shows is short."""

import re
from pathlib import Path

import numpy as np
import pytest

import probekit

PAGE = Path(__file__).parents[2] / "docs" / "start" / "notebook.md"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The names that the page's code leaves behind, and what it printed on stderr."""
    import contextlib
    import io
    import os

    import matplotlib

    matplotlib.use("Agg")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line]) <= 17
    folder, before, errors = tmp_path_factory.mktemp("notebook"), Path.cwd(), io.StringIO()
    names: dict = {}
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors):
            exec(compile(code, str(PAGE), "exec"), names)
        yield names, errors.getvalue()
    finally:
        os.chdir(before)


def test_the_page_gives_what_it_says(cells):
    names, errors = cells
    assert "sweep: " in errors  # progress was shown
    results = names["results"]
    assert [record.layers for record in results] == [("pixels",), ("squares",)]
    assert results.best().accuracy > 0.9
    assert names["page"].is_file()
    assert len(names["more"]) == 2
    assert len(probekit.Results("digits").series) == 2
    assert names["axes"].get_xlabel()


def test_the_loaded_probe_predicts_what_was_stored(cells):
    names, _ = cells
    from probekit.results.predictions import row_predictions

    record = names["results"].best()
    rows = row_predictions(record)
    X = names["layers"][record.layers[0]][rows.row_ids]
    np.testing.assert_allclose(record.load_probe().predict_log_proba(X), rows.log_proba, atol=1e-5)


def test_reprs_are_one_short_line_and_html_is_a_table(cells):
    names, _ = cells
    shown = [repr(names["results"]), repr(names["results"].best()), repr(names["features"])]
    assert all(len(text) < 250 and "\n" not in text for text in shown)
    assert names["results"]._repr_html_().count("<tr") == 3


def test_public_names_complete_and_exist():
    listed = dir(probekit)
    wanted = "extract sweep concat study compare Results Protocol PROTOCOLS write_report predict verify FeatureStore"
    assert set(wanted.split()) <= set(listed)
    assert all(getattr(probekit, name) is not None for name in listed)
