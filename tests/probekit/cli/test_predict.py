"""predict from the command line, on small inputs."""

import csv
import json

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from probekit import extract, load_dataset, load_encoder
from probekit.cli import demo
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
    expected = load_file(probe)["test_predictions"][:20]
    with open(out) as file:
        told = list(csv.DictReader(file))
    assert [int(row["class"]) for row in told] == expected.tolist()
    assert all(0.1 < float(row["probability"]) <= 1 for row in told)
    best = tmp_path / "best.csv"
    assert main(["predict", str(tmp_path), str(folder), "--out", str(best)]) == 0  # the only layer is the best
    assert best.read_text() == out.read_text()
    capsys.readouterr()
    assert main(["predict", str(tmp_path), str(folder)]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert main(["predict", str(tmp_path), str(folder), "--series", "igpt"]) == 2
    assert "no series 'igpt'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.safetensors"), str(folder), "--encoder", "pixels:8"]) == 2
    assert main(["predict", str(probe), str(tmp_path / "nowhere"), "--encoder", "pixels:8"]) == 2
    assert main(["predict", str(probe), str(folder), "--encoder", "histogram:8"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert 'fitted on another encoder (kind: "pixels" there' in error


def test_a_probe_of_joined_layers_finds_its_own_encoder(tmp_path, capsys):
    run = demo.pretrained_files()
    common = ["--protocol", "dinov2-45", "--Cs", "0.001", "--Cs", "0.01"]
    file, layers = tmp_path / "features.h5", ["--layers", "0[34]", "--limit", "40"]
    assert main(["extract", f"igpt:{run}", "wandering-digits", *layers, "--no-norm", "--out", str(file)]) == 0
    assert main(["concat", str(file), *common, "--window", "2", "--greedy-width", "0"]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (joined,) = [record for record in records if record["kind"] == "concat"]
    probe, split = tmp_path / joined["probe_file"], load_dataset("wandering-digits").splits["test"].limit(40)
    words = []
    for index, image in enumerate(split.images(0, 6)):
        words.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image).save(words[-1])
    assert main(["predict", str(probe), *words, "--out", str(tmp_path / "new" / "out.csv")]) == 0
    told = list(csv.DictReader((tmp_path / "new" / "out.csv").open()))
    assert [int(row["class"]) for row in told] == load_file(probe)["test_predictions"][:6].tolist()
    assert [row["name"] for row in told] == [row["class"] for row in told]
    assert [row["image"] for row in told] == words
    capsys.readouterr()
    assert main(["predict", str(probe), words[0], "--encoder", f"igpt:{run}"]) == 2  # normed layers
    assert 'norm: "none" there' in capsys.readouterr().err
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert main(["predict", str(probe), words[0]]) == 2
    assert "0.png cannot be decoded as an image" in capsys.readouterr().err


def test_pictures_are_decoded_as_those_of_the_features_were(tmp_path):
    """Each picture is bright on one side as it is stored, and its EXIF orientation turns it by 90 degrees."""
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x112] = 6
    for side in (0, 1):
        folder = tmp_path / "pictures" / ("left", "right")[side]
        folder.mkdir(parents=True)
        for i in range(20):
            picture = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            picture[:, 4 * side : 4 * side + 4] += 150
            Image.fromarray(picture).save(folder / f"{i}.png", exif=exif)
    pictures = str(tmp_path / "pictures")
    right = {}
    for how in ("ignore", "apply"):
        out = tmp_path / how
        assert main(["extract", "pixels:8", pictures, "--exif", how, "--out", str(out / "f.h5")]) == 0
        assert main(["sweep", str(out / "f.h5"), "--Cs", "0.01"]) == 0
        assert main(["predict", str(out), pictures, "--out", str(out / "p.csv")]) == 0
        rows = list(csv.DictReader((out / "p.csv").open()))
        right[how] = sum(f"/{row['name']}/" in row["image"] for row in rows)
    assert right == {"ignore": 40, "apply": 40}
