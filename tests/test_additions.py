"""Additions from outside: a probe, a metric, an encoder and a figure go through sweep, table and report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import probekit
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


PROBE = '''
"""A toy probe."""

import numpy as np

from probekit.probes.probe import EXACT, FittedLinear, Probe
from probekit.selection.choose_C import cross_validate, score_log_proba


def fitted(X, columns, n_classes, C):
    """Nearest class mean, shrunk by C."""
    centres = C / (1 + C) * np.stack([X[columns == k].mean(axis=0) for k in range(n_classes)])
    return {"classes": np.arange(n_classes), "coef": centres, "intercept": -0.5 * np.square(centres).sum(axis=1)}


class Toy(Probe):
    kind = "toy"

    def fit(self, X, widths, split, protocol, settings):
        columns, n_classes = split.encoded[1], len(split.encoded[0])

        def fit_and_score(Cs, rows, held):
            probes = [FittedLinear(**fitted(X[rows], columns[rows], n_classes, C)) for C in Cs]
            log_proba = np.stack([probe.predict_log_proba(X[held]) for probe in probes])
            return score_log_proba(log_proba, columns[held], split.weights[held])

        selection, use = self.cross_validate(split, protocol, settings, fit_and_score)
        final = fitted(X[use], columns[use], n_classes, selection.chosen)
        return FittedLinear(**final, selection=selection, certificate=EXACT, train_accuracy=0.0)
'''
METRIC = '''

@metric
def confidence(log_proba_NK, y_N):
    """Mean largest probability."""
    return float(np.exp(log_proba_NK).max(axis=1).mean())
'''
FIGURE = '''
"""A toy figure."""

from matplotlib.figure import Figure


def toy_figure(panel):
    """The number of layers of each series."""
    figure = Figure()
    figure.subplots().bar([series.label for series in panel.series], [len(series.records) for series in panel.series])
    return figure
'''
ENCODER = """
import numpy as np
import torch


class Corners:
    layers, widths, provenance = ("whole", "rows"), (1, 8), {"name": "corners", "weights_hash": None}

    def __init__(self, text, **options):
        assert text == "any"

    def prepare(self, image):
        return np.ascontiguousarray(image[:8, :8])

    def __call__(self, images, row_ids):
        grey = torch.as_tensor(images).float().mean(3)
        return [grey.mean((1, 2))[:, None], grey.mean(2)]
"""
RUN = """
from probekit.cli.main import main
assert main(["extract", "corners:any", "digits", "--limit", "200", "--out", "features.h5"]) == 0
assert main(["sweep", "features.h5", "--Cs", "0.1,10", "--checks", "toy", "--out", "results"]) == 0
assert main(["table", "results", "--out", "table.csv"]) == 0
assert main(["plot", "results", "--kind", "toy", "--out", "toy.svg"]) == 0
assert main(["report", "results", "--out", "report"]) == 0
assert main(["shape", "features.h5"]) == 0
"""


def edited(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def test_a_probe_touches_one_file_a_metric_one_a_figure_two_an_encoder_none_and_a_verb_one(tmp_path):
    """Each is added to a copy of the package, whose files are then counted, and all are run by its commands."""
    ours = Path(probekit.__file__).parent
    copy = tmp_path / "code" / "probekit"
    shutil.copytree(ours, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ours.parent / "igpt_model", copy.parent / "igpt_model")

    def probe():
        (copy / "probes" / "toy.py").write_text(PROBE.lstrip())

    def add_metric():
        with open(copy / "results" / "metrics.py", "a") as file:
            file.write(METRIC)

    def figure():
        (copy / "reports" / "figures" / "toy.py").write_text(FIGURE.lstrip())
        plot = copy / "cli" / "plot.py"
        edited(plot, 'kind: Literal["depth", ', 'kind: Literal["toy", "depth", ')
        drawn = "from probekit.reports.figures.toy import toy_figure"
        use = f"{drawn}\n            figure, points = toy_figure(panels[0]), layer_frame(panels)"
        edited(
            plot,
            '        elif kind == "depth":',
            f'        elif kind == "toy":\n            {use}\n        elif kind == "depth":',
        )

    def encoder():
        about = tmp_path / "corners" / "corners-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: corners\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[probekit.encoders]\ncorners = corners:Corners\n")
        (about.parent / "corners.py").write_text(ENCODER)

    def verb():
        function = "probekit.evaluate.layer_geometry:geometry"
        line = f'    "shape": Verb(LOOK, "Shape of the features.", "{function}", unit="layers"),\n'
        edited(copy / "cli" / "main.py", '    "inspect": Verb(', f'{line}    "inspect": Verb(')

    def contents():
        return {path: path.read_bytes() for path in copy.parent.rglob("*") if path.is_file()}

    touched, before = [], contents()
    for add in (probe, add_metric, figure, encoder, verb):
        add()
        after = contents()
        touched.append(sum(after[path] != before.get(path) for path in after))
        before = after
    assert touched == [1, 1, 2, 0, 1]
    paths = [str(copy.parent), str(tmp_path / "corners")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "table.csv").read_text()
    assert ",toy," in table
    assert "confidence" in table.splitlines()[0]
    assert "<svg" in (tmp_path / "toy.svg").read_text()
    assert "toy" in (tmp_path / "report" / "index.html").read_text()
    assert "rankme" in done.stdout
