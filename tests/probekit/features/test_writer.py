"""One writer at a time, and no skeleton that cannot fit."""

import errno
from types import SimpleNamespace

import pytest
from feature_fakes import LinearEncoder, dataset

from probekit.features.extract import extract
from probekit.features.writer import new_hdf5, write_lock
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


def test_too_small_a_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("probekit.features.writer.shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    encoder = LinearEncoder(fail_after=0)
    with pytest.raises(UserError, match=r"needs [0-9.,]+ MB and .* has [0-9.,]+ MB free: .*--store float16"):
        extract(encoder, dataset(), tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
