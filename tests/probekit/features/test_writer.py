"""One writer at a time, and no skeleton that cannot fit."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
from feature_fakes import LinearEncoder, dataset

from probekit.features.extract import extract
from probekit.features.writer import FeatureWriter, new_hdf5, write_lock
from probekit.runtime.errors import UserError


def test_a_second_writer_is_refused_at_once(tmp_path):
    with write_lock(tmp_path / "f.h5"), pytest.raises(UserError, match="being written by another process"):
        extract(LinearEncoder(), dataset(), tmp_path / "f.h5")
    assert extract(LinearEncoder(), dataset(), tmp_path / "f.h5").splits == ("train", "test")


@pytest.mark.parametrize(("number", "raised"), [(errno.EDQUOT, UserError), (errno.EIO, OSError)])
def test_a_write_that_fails_where_an_object_is_freed_is_not_ignored(tmp_path, number, raised):
    """A disk that was full for a moment: h5py printed this, and the file was renamed into place without its labels."""

    class Freed:
        def __del__(self):
            raise RuntimeError(
                f"Can't decrement id ref count (file write failed: errno = {number}, error message = ..."
            )

    def write():
        with new_hdf5(tmp_path / "f.h5") as file:
            Freed()
            file["x"] = 1

    with pytest.raises(raised, match=r"full|Input/output error"):
        write()
    assert not list(tmp_path.iterdir())


def test_blocks_whose_bytes_a_disk_lost_stay_undone(tmp_path, monkeypatch):
    """Linux reports lost bytes to one fsync; the next one of the same file succeeds."""

    def lost(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(KeyboardInterrupt):
        extract(LinearEncoder(fail_after=0), dataset(), tmp_path / "f.h5", batch_size=8)
    with FeatureWriter(tmp_path / "f.h5") as writer:
        features = [np.zeros((8, width), np.float32) for width in writer.header.widths]
        writer.write("train", 0, np.zeros(8, np.uint64), features)
        with monkeypatch.context() as patch:
            patch.setattr("probekit.features.writer.os.fsync", lost)
            with pytest.raises(OSError, match="Input/output error"):
                writer.commit()
        writer.write("train", 1, np.zeros(8, np.uint64), features)
        writer.commit()
    with FeatureWriter(tmp_path / "f.h5") as writer:
        assert np.flatnonzero(writer.done["train"]).tolist() == [1]


def test_too_small_a_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("probekit.features.writer.shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    encoder = LinearEncoder(fail_after=0)
    with pytest.raises(UserError, match=r"needs [0-9.,]+ MB but .* has [0-9.,]+ MB free; .*--store float16"):
        extract(encoder, dataset(), tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
