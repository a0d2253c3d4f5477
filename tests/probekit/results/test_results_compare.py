"""Paired comparisons and the results table, on a small sweep."""

import numpy as np
import pytest

from probekit.evaluate.sweep import sweep
from probekit.results.metrics import mcnemar_exact
from probekit.results.predictions import row_predictions
from probekit.results.results import Results, compare
from probekit.runtime.errors import UserError
from tests.probekit.feature_doubles import MemoryStore


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    sweep(MemoryStore(strength=(0.0, 1.5)), out, Cs=[0.1], series="a")
    sweep(MemoryStore(strength=(0.3, 0.0), id="other"), out, Cs=[0.1], series="b", layers=["00"])
    return Results(out)


def test_series_are_compared_on_shared_rows(results):
    found = results.compare("a", "b")
    left, right = (row_predictions(results.best(name)).correct for name in "ab")
    assert found.difference == pytest.approx(left.mean() - right.mean())
    assert found.low <= found.difference <= found.high
    assert found.p == mcnemar_exact(left, right)
    assert found.only_a - found.only_b == round(found.difference * found.n)
    assert "a layer 01 has" in found.sentence()


def test_files_are_compared_too(results, tmp_path):
    store = MemoryStore(strength=(0.0, 1.5))
    sweep(store, tmp_path, Cs=[0.1], series="a")
    same = compare(results, tmp_path, series_a="a")
    assert (same.difference, same.p) == (0.0, 1.0)
    assert (same.a, same.b) == (
        f"a layer 01 (folder {results.path.parent})",
        f"a layer 01 (folder {tmp_path})",
    )


def test_other_test_rows_and_labels_are_refused(results, tmp_path):
    strangers = MemoryStore(id="strangers")
    strangers.ids["test"] = strangers.ids["test"] + 10_000
    with pytest.raises(UserError, match="have no test rows in common"):
        compare(results.best("a"), sweep(strangers, tmp_path / "ids", Cs=[0.1]))
    relabelled = MemoryStore(id="relabelled")
    relabelled.y["test"] = (relabelled.y["test"] + 1) % 3
    with pytest.raises(UserError, match="have different labels"):
        compare(results.best("a"), sweep(relabelled, tmp_path / "labels", Cs=[0.1]))
    with pytest.raises(UserError, match="have different labels"):  # over several draws too
        compare(results, sweep(relabelled, tmp_path / "seeds", Cs=[0.1], seeds=2), series_a="a")


def test_plot_and_unknown_series(results):
    axes = results.plot_depth()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"a", "b"}
    np.testing.assert_allclose(axes.lines[0].get_ydata(), results.curves()["a"].values)
    with pytest.raises(UserError, match="no series 'c'"):
        results.best("c")
