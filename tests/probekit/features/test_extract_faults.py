"""Size limits, vanished folders, files cut short: one clear sentence each, and nothing complete is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from feature_fakes import LinearEncoder, dataset
from PIL import Image

from probekit.cli.main import main
from probekit.datasets import load_dataset
from probekit.features.extract import extract
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.runtime.errors import UserError

HERE = Path(__file__).parent
WIDE = (512, 512)

UNDER_A_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
from feature_fakes import LinearEncoder, dataset
from probekit.runtime.errors import UserError
from probekit.features.extract import extract
try:
    extract(LinearEncoder(widths=(512, 512)), dataset(train=400), sys.argv[1])
except UserError as error:
    print(error)
"""


def test_a_size_limit_of_the_system_is_one_sentence_and_leaves_nothing_half_made(tmp_path):
    paths = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    path = tmp_path / "f.h5"
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(path), str(700_000)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert "is full while writing f.h5" in done.stdout, done.stdout + done.stderr[-2000:]
    assert not path.exists()
    assert len(extract(LinearEncoder(widths=WIDE), dataset(train=400), path).labels("train")) == 400


class Interfering(LinearEncoder):
    """Does something to the world before its third batch."""

    def __call__(self, images_BHWC, row_ids_B):
        if self.calls == 3:
            self.interfere()
        return super().__call__(images_BHWC, row_ids_B)


def test_a_folder_that_vanishes_while_writing_is_said_and_a_new_run_starts_over(tmp_path):
    path = tmp_path / "out" / "f.h5"
    encoder = Interfering()
    encoder.interfere = lambda: shutil.rmtree(path.parent)
    with pytest.raises(UserError, match="moved, deleted or replaced while it was being written"):
        extract(encoder, dataset(), path, batch_size=8)
    assert verify(extract(LinearEncoder(), dataset(), path, batch_size=8).path).ok


def test_a_file_put_in_the_place_of_ours_is_not_marked_complete(tmp_path):
    path = tmp_path / "f.h5"
    other = extract(LinearEncoder(), dataset(seed=3), tmp_path / "other.h5", batch_size=8)
    encoder = Interfering()
    encoder.interfere = lambda: shutil.copy(other.path, tmp_path / "copy.h5") and os.replace(tmp_path / "copy.h5", path)
    with pytest.raises(UserError, match="replaced while it was being written"):
        extract(encoder, dataset(), path, batch_size=8)
    assert FeatureStore.open(path).id == other.id
    assert verify(path).ok


def write_pets(folder):
    """Twenty pictures of noise for each of two classes."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i:02d}.png")


def test_a_data_folder_that_vanishes_keeps_what_was_written(tmp_path):
    write_pets(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    encoder = Interfering()
    encoder.interfere = lambda: shutil.rmtree(tmp_path / "data")
    path = tmp_path / "f.h5"
    with pytest.raises(UserError, match=r"png was listed but cannot be read"):
        extract(encoder, load_dataset(tmp_path / "data"), path, batch_size=4)
    shutil.copytree(tmp_path / "kept", tmp_path / "data")
    again = LinearEncoder()
    store = extract(again, load_dataset(tmp_path / "data"), path)
    assert again.calls < 11
    whole = extract(LinearEncoder(), load_dataset(tmp_path / "data"), tmp_path / "whole.h5", batch_size=4)
    assert store.id == whole.id


@pytest.mark.parametrize("left", [0.2, 0.6, 0.95])
def test_an_unfinished_file_that_was_cut_short_is_refused_and_stays(tmp_path, left):
    path = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(LinearEncoder(fail_after=4), dataset(), path, batch_size=8)
    os.truncate(path, int(os.path.getsize(path) * left))
    before = path.read_bytes()
    for action in (lambda: extract(LinearEncoder(), dataset(), path), lambda: FeatureStore.open(path)):
        with pytest.raises(UserError, match="is truncated"):
            action()
    assert path.read_bytes() == before


def test_an_empty_or_foreign_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "f.h5"
    for content in (b"", b"my only copy of something else"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"not an HDF5 file|truncated|cannot be opened"):
            extract(LinearEncoder(), dataset(), path)
        assert path.read_bytes() == content


def test_corrupt_images_are_skipped_only_with_the_flag_and_recorded(tmp_path, capsys):
    write_pets(tmp_path / "pets")
    for name in ("cat/05.png", "dog/19.png"):
        (tmp_path / "pets" / name).write_bytes(b"\x89PNG cut short")
    command = ["extract", "pixels:4", str(tmp_path / "pets"), "--out", str(tmp_path / "f.h5")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "unknown format" in error
    assert "--skip-corrupt" in error
    (tmp_path / "f.h5").unlink()
    assert main([*command, "--skip-corrupt"]) == 0
    assert "2 corrupt image(s) of train left out: cat/05.png, dog/19.png" in capsys.readouterr().err
    store = FeatureStore.open(tmp_path / "f.h5")
    assert store.dataset["skipped"]["train"]["row_ids"] == [5, 39]
    ids = np.concatenate([store.row_ids(split) for split in store.splits])
    assert sorted(ids) == [row for row in range(40) if row not in (5, 39)]
    assert main([*command, "--skip-corrupt"]) == 0
    assert verify(store.path, load_dataset(tmp_path / "pets", skip_corrupt=True)).errors == []
    # the verb knows from the file that images were left out
    capsys.readouterr()
    assert main(["verify", str(store.path), "--data", str(tmp_path / "pets")]) == 0
    assert "no errors, no warnings" in capsys.readouterr().out
    assert main(["extract", "pixels:4", "digits", "--out", str(tmp_path / "g.h5"), "--skip-corrupt"]) == 2
    assert "takes no option --skip-corrupt" in capsys.readouterr().err
