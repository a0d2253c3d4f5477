"""`probekit finetune` on a folder of class folders, laid out as ImageNet is: train and val, pictures of many sizes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from igpt_model.classifier import load_classifier
from probekit.cli.main import main
from probekit.results.predictions import load_probe

SIZES = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--resolution", "6", "--n-colours", "4"]
QUICK = ["--batch-size", "8", "--no-tensorboard"]
CLASSES = ["n01440764", "n02102040", "n03000684"]  # dark, middling, bright


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes of unequal brightness and numbers; tall, wide, grey and colour, .JPEG and .png."""
    root, rng = tmp_path_factory.mktemp("folder") / "net", np.random.default_rng(0)
    for split, counts in (("train", (20, 30, 40)), ("val", (3, 5, 4))):
        for kind, n in enumerate(counts):
            (root / split / CLASSES[kind]).mkdir(parents=True)
            for i in range(n):
                shape = (*rng.integers(6, 15, 2), *([3] if i % 2 else []))
                picture = Image.fromarray((20 + 90 * kind + rng.integers(0, 20, shape)).astype(np.uint8))
                picture.save(root / split / CLASSES[kind] / f"{i:03d}.{'JPEG' if i % 3 else 'png'}", quality=95)
    return root


@pytest.fixture(scope="module")
def run(folder):
    out = folder.parent / "run"
    assert main(["train", str(folder), "--out", str(out), *SIZES, "--steps", "2", *QUICK]) == 0
    return out


def tune(run, folder, out, *more):
    lr = ["--steps", "20", "--eval-every", "10", "--lr", "0.03"]
    return main(["finetune", str(run), str(folder), "--out", str(out), *lr, *QUICK, *more])


@pytest.mark.parametrize("augment", [(), ("resize_crop:7:9:6", "flip")])
def test_a_folders_classes_are_learned_and_every_file_gets_its_own_prediction(run, folder, tmp_path, augment):
    out = tmp_path / "tuned"
    assert tune(run, folder, out, *(word for name in augment for word in ("--augment", name))) == 0
    books = json.loads((out / "config.json").read_text())
    assert books["classes"] == CLASSES
    assert books["data"]["train_images"] + books["data"]["val_images"] == 90  # val is held out of train, ...
    files = sorted((folder / "val").rglob("*.*"))  # ... and the folder's val is the test split, as ImageNet is reported
    truth = np.array([CLASSES.index(file.parent.name) for file in files])
    rows = load_probe(out / "test_predictions.safetensors")
    assert np.array_equal(rows["test_labels"], truth)
    tuned = load_classifier(out)
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    assert np.array_equal(tuned.predict_proba(pictures).argmax(1), rows["test_predictions"])
    # brightness of the classes differs by 90 and within one by 20: whoever learns at all tells all of them apart
    assert np.array_equal(rows["test_predictions"], truth)
    assert json.loads((out / "test.json").read_text())["top1"] == 1


def test_a_folder_that_changed_is_refused_and_the_same_one_goes_on(run, folder, tmp_path, capsys):
    mine = shutil.copytree(folder, tmp_path / "net")
    assert tune(run, mine, tmp_path / "tuned", "--no-test") == 0
    before = load_classifier(tmp_path / "tuned").classifier.clf.weight
    assert tune(run, mine, tmp_path / "tuned", "--no-test") == 0
    assert "resuming from step 20" in capsys.readouterr().err
    assert load_classifier(tmp_path / "tuned").classifier.clf.weight.equal(before)
    (mine / "train" / CLASSES[0] / "000.png").unlink()
    assert tune(run, mine, tmp_path / "tuned") == 2
    assert "different settings" in capsys.readouterr().err


def test_a_flat_folder_lends_its_test_rows_and_a_broken_picture_is_named(run, folder, tmp_path, capsys):
    flat = shutil.copytree(folder / "train", tmp_path / "flat")
    assert tune(run, flat, tmp_path / "tuned") == 0
    found = json.loads((tmp_path / "tuned" / "test.json").read_text())
    assert found["n_test"] == 18  # a fifth of 90
    data = json.loads((tmp_path / "tuned" / "config.json").read_text())["data"]
    assert data["train_images"] + data["val_images"] == 72
    (flat / CLASSES[1] / "004.JPEG").write_bytes(b"no picture")
    assert tune(run, flat, tmp_path / "b") == 2
    assert f"{CLASSES[1]}/004.JPEG" in capsys.readouterr().err
