"""A probe, a metric, an encoder and a figure from outside, in this one file, go through sweep, table and report."""

import numpy as np
import pytest
import torch

from probekit import extract, load_dataset, load_encoder, sweep
from probekit.evaluate.predict import find_record, load_fitted
from probekit.probes import PROBES, Probe
from probekit.probes.probe import EXACT, FittedLinear
from probekit.reports import build_panels, layer_frame, write_report
from probekit.results.metrics import METRICS, metric
from probekit.results.predictions import row_predictions
from probekit.selection.choose_C import cross_validate, score_log_proba


class Corners:
    """An encoder of two layers: the mean of the image, and the mean of each quarter of it."""

    layers = ("whole", "quarters")
    widths = (1, 4)
    provenance = {"name": "corners", "weights_hash": None}  # noqa: RUF012

    def prepare(self, image_HWC):
        return np.ascontiguousarray(image_HWC[:8, :8])

    def __call__(self, images_BHWC, row_ids_B):
        grey_BHW = torch.as_tensor(images_BHWC).float().mean(3)
        return [grey_BHW.mean((1, 2))[:, None], grey_BHW.reshape(-1, 2, 4, 2, 4).mean((2, 4)).flatten(1)]


def class_means(X, columns, n_classes, C):
    """Linear scores of the nearest class mean, shrunk towards the mean of all rows by C."""
    centres = np.stack([X[columns == k].mean(axis=0) for k in range(n_classes)])
    centres = X.mean(axis=0) + C / (1 + C) * (centres - X.mean(axis=0))
    return centres, -0.5 * np.square(centres).sum(axis=1)


@pytest.fixture
def added():
    """The toy probe and metric, taken out again afterwards."""

    class Centroid(Probe):
        kind = "toy"

        def fit(self, X, widths, split, protocol, settings):
            classes, columns = split.encoded

            def fit_and_score(Cs, fitted, held):
                made = [class_means(X[fitted], columns[fitted], len(classes), C) for C in Cs]
                log_proba = [
                    FittedLinear(classes=classes, coef=W, intercept=b).predict_log_proba(X[held]) for W, b in made
                ]
                return score_log_proba(np.stack(log_proba), columns[held], split.weights[held])

            selection = cross_validate(self.grid(protocol), split.rounds("cv5"), fit_and_score, "cv5")
            W, b = class_means(X, columns, len(classes), selection.chosen)
            chosen = {"selection": selection, "certificate": EXACT, "train_accuracy": 0.0}
            return FittedLinear(classes=classes, coef=W, intercept=b, **chosen)

    @metric
    def confidence(log_proba_NK, y_N):
        return float(np.exp(log_proba_NK).max(axis=1).mean())

    yield
    del PROBES["toy"], METRICS["confidence"]


def toy_figure(panel):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().bar(*np.unique([series.label for series in panel.series], return_counts=True))
    return figure


def test_additions_go_from_images_to_the_report(tmp_path, added):
    store = extract(load_encoder(Corners()), load_dataset("digits"), tmp_path / "features.h5", limit=300)
    results = sweep(store, tmp_path, Cs=[0.1, 10.0], checks=["toy"])
    toys = [record for record in results if record.kind == "toy"]
    assert [record.layers for record in toys] == [("00_whole",), ("01_quarters",)]
    assert toys[1].accuracy > toys[0].accuracy > 0.1
    for record in results:
        proba = np.exp(row_predictions(record).log_proba)
        assert record.metrics["confidence"] == pytest.approx(proba.max(axis=1).mean(), rel=1e-5)
    fitted = load_fitted(find_record(tmp_path / toys[1].probe_file))
    X = store.read("test", 1)[0]
    np.testing.assert_allclose(fitted.predict_log_proba(X), row_predictions(toys[1]).log_proba, atol=1e-5)

    frame = layer_frame(build_panels(results))
    assert frame[frame["probe"] == "toy"]["confidence"].tolist() == [r.metrics["confidence"] for r in toys]
    assert "confidence" in results.frame()
    page = write_report(tmp_path, tmp_path / "report", figures={"toy_figure": toy_figure})
    assert 'aria-label="toy_figure on digits"' in page.read_text()
    assert (tmp_path / "report" / "toy_figure.svg").is_file()
    assert ",toy," in (tmp_path / "report" / "table.csv").read_text()
    assert "toy" in (tmp_path / "report" / "table.md").read_text()
