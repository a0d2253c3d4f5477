"""Columns of parquet files."""

import warnings

import pytest

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder, split_sizes


def test_parquet_labels_and_splits_by_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()

    def load(labels, **columns):
        table = pyarrow.table({"image": [content] * 12, "label": labels, **columns})
        parquet.write_table(table, tmp_path / "p.PARQUET")
        return load_dataset(tmp_path / "p.PARQUET")

    split = ["train"] * 8 + ["test"] * 4
    assert split_sizes(load([0, 1] * 6, split=split))["test"] == 4
    for name in ("train", "test"):
        (tmp_path / "named" / name).mkdir(parents=True)
        (tmp_path / "named" / name / "0.parquet").write_bytes((tmp_path / "p.PARQUET").read_bytes())
    assert split_sizes(load_dataset(tmp_path / "named"))["test"] == 12
    with pytest.raises(UserError, match=r"is already divided into .*; leave out split=split"):
        load_dataset(f"{tmp_path / 'named'}#split=split")
    assert load([0.0, 1.0] * 6).classes == ("0", "1")
    with pytest.raises(UserError, match="a name of 10,001 characters"):
        load(["a" * 10_001, "b"] * 6)
    table = pyarrow.table([[content] * 12, [0, 1] * 6, [0, 1] * 6], names=["image", "label", "label"])
    parquet.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match="several columns named label"):
        load_dataset(tmp_path / "twice.parquet")
    for missing in (pyarrow.array([0, 1, None] * 4), ["a", "b", None] * 4):
        with pytest.raises(UserError, match="4 of 12 rows have no label"):
            load(missing)


def test_paths_in_parquet_are_each_there_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    image_folder(tmp_path / "d", ".", count=12)
    (tmp_path / "d" / "link.png").symlink_to("3.png")

    def load(names):
        table = pyarrow.table({"photo": pyarrow.array(names, pyarrow.string()), "label": [i % 2 for i in range(12)]})
        parquet.write_table(table, tmp_path / "d" / "p.parquet")
        return load_dataset(tmp_path / "d" / "p.parquet", image="photo")

    names = [f"{i}.png" for i in range(12)]
    assert sum(split_sizes(load(names)).values()) == 12
    for other in ("3.png", "./3.png", str(tmp_path / "d" / "3.png"), "link.png"):
        with pytest.raises(UserError, match=r"in rows 3 .*and 11"):
            load([*names[:11], other])
    for other in ("12.png", "a\0/3.png", "x" * 5000):
        with pytest.raises(UserError, match="which does not exist; give paths"):
            load([*names[:11], other])
    with pytest.raises(UserError, match=r"in row 11 .*, which is not a file; give the path of an image"):
        load([*names[:11], None])


def test_a_range_with_a_missing_file_is_refused(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    for number in (0, 2):
        rows = pyarrow.table({"image": [content] * 4, "label": [0, 1] * 2})
        parquet.write_table(rows, tmp_path / f"s-{number}.parquet")
    with pytest.raises(UserError, match=r"s-1\.parquet does not exist"):
        load_dataset(tmp_path / "s-{0..2}.parquet")


def test_shards_that_a_folder_lacks_are_said(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    (tmp_path / "p").mkdir()
    for number in (0, 2, 1):
        rows = pyarrow.table({"image": [content] * 4, "label": [0, 1] * 2})
        parquet.write_table(rows, tmp_path / "p" / f"train-0000{number}-of-00003-a09b.parquet")
        if number == 2:
            with pytest.warns(UserWarning, match=r"train-\*-of-00003: only 2 of 3 files exist"):
                load_dataset(tmp_path / "p")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(tmp_path / "p")
        load_dataset(f"{tmp_path}/p/train-0000[01]*.parquet")


@pytest.mark.parametrize(
    ("path", "words"),
    # the first is too long for the system: Python 3.14 takes it for one that does not exist
    [("x" * 5000, "cannot be read|does not exist"), ("a\0", "does not exist"), ("none.png", "does not exist")],
)
def test_the_file_of_an_image_that_no_path_can_have_or_that_is_gone(tmp_path, path, words):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    rows = pyarrow.table({"image": [{"bytes": None, "path": path}] * 20, "label": [0, 1] * 10})
    parquet.write_table(rows, tmp_path / "s.parquet")
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "s.parquet").splits["train"].images(0, 1)


def test_a_page_that_does_not_fit_its_checksum_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    table = pyarrow.table({"image": [content] * 12, "label": [f"cat{k % 2}" for k in range(12)]})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    parquet.write_table(table, tmp_path / "p.parquet", write_page_checksum=True, **options)
    written = (tmp_path / "p.parquet").read_bytes()
    assert load_dataset(tmp_path / "p.parquet").classes == ("cat0", "cat1")
    (tmp_path / "p.parquet").write_bytes(written.replace(b"cat1", b"cow1", 1))
    with pytest.raises(UserError, match=r"not a complete parquet file .*CRC"):
        load_dataset(tmp_path / "p.parquet")


def test_a_row_group_that_has_fewer_rows_than_it_declares_is_refused(tmp_path):
    """Each byte of the footer that may be a number of rows is set to 0; errors other than `UserError` fail the test."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    table = pyarrow.table({"image": [content] * 12, "label": [0, 1] * 6})
    parquet.write_table(table, tmp_path / "p.parquet", compression="none", store_schema=False)
    written = (tmp_path / "p.parquet").read_bytes()
    footer = len(written) - 8 - int.from_bytes(written[-8:-4], "little")
    said = []
    for place in (k for k in range(footer, len(written) - 8) if written[k] == 24):  # Thrift writes 12 as 24
        (tmp_path / "p.parquet").write_bytes(written[:place] + b"\0" + written[place + 1 :])
        try:
            assert sum(len(split.images(0, 12)) for split in load_dataset(tmp_path / "p.parquet").splits.values()) == 12
        except UserError as error:
            said.append(str(error))
    assert said
