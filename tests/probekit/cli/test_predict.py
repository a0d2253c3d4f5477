"""predict from the command line, on small inputs."""

import csv
import json

import numpy as np
from PIL import Image

from probekit import extract, load_dataset, load_encoder
from probekit.cli.main import main


def test_predictions_are_those_of_the_sweep(tmp_path, capsys):
    data = load_dataset("digits")
    store = extract(load_encoder("pixels:8", data=data), data, tmp_path / "features.h5", limit=60)
    assert main(["sweep", str(tmp_path / "features.h5"), "--Cs", "0.01"]) == 0
    record = json.loads((tmp_path / "results.jsonl").read_text())
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = [int(np.flatnonzero(data.splits["test"].row_ids == row)[0]) for row in store.row_ids("test")[:20]]
    for place, row in enumerate(rows):
        Image.fromarray(data.splits["test"].images(row, row + 1)[0]).save(folder / f"{place:02d}.png")
    probe, out = tmp_path / record["probe_file"], tmp_path / "out.csv"
    assert main(["predict", str(probe), str(folder), "--encoder", "pixels:8", "--out", str(out)]) == 0
    from safetensors.numpy import load_file

    expected = load_file(probe)["test_predictions"][:20]
    with open(out) as file:
        told = list(csv.DictReader(file))
    assert [int(row["class"]) for row in told] == expected.tolist()
    assert all(0.1 < float(row["probability"]) <= 1 for row in told)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "none.safetensors"), str(folder), "--encoder", "pixels:8"]) == 2
    assert main(["predict", str(probe), str(tmp_path / "nowhere"), "--encoder", "pixels:8"]) == 2
    assert main(["predict", str(probe), str(folder), "--encoder", "histogram:8"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "has no layer" in error
