"""One writer at a time, and no skeleton that cannot fit."""

from types import SimpleNamespace

import pytest
from feature_fakes import LinearEncoder, dataset

from probekit.features.extract import extract
from probekit.features.writer import write_lock
from probekit.runtime.errors import UserError


def test_a_second_writer_is_refused_at_once(tmp_path):
    with write_lock(tmp_path / "f.h5"), pytest.raises(UserError, match="being written by another process"):
        extract(LinearEncoder(), dataset(), tmp_path / "f.h5")
    assert extract(LinearEncoder(), dataset(), tmp_path / "f.h5").splits == ("train", "test")


def test_too_small_a_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("probekit.features.writer.shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    encoder = LinearEncoder(fail_after=0)
    with pytest.raises(UserError, match=r"needs [0-9.,]+ MB and .* has [0-9.,]+ MB free: .*--store float16"):
        extract(encoder, dataset(), tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
