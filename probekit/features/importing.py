"""Import features and labels from .npy, .npz, .pt and .csv files.

Nothing is unpickled: NumPy loads with allow_pickle=False, PyTorch with weights_only=True. N rows, D features.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from igpt_model.arguments import plain_array
from igpt_model.checked_json import open_regular
from igpt_model.devices import is_plain
from igpt_model.hashing import hash_file
from igpt_model.whole_files import load_npy, load_npz
from probekit.datasets.labels import label_array
from probekit.datasets.splits import stratified_holdout
from probekit.features.memory_store import check_rows
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError, explained
from probekit.runtime.memory import free_memory

LABEL_KEYS = ("labels", "label", "y", "targets", "target")
# names that pandas and databases give to a column of row numbers
INDEX_NAMES = ("index", "idx", "id", "row", "row_id", "rowid", "row_number", "image_id", "sample_id", "level_0")
TEST_FRACTION = 0.2


def import_features(
    out: str | Path | Mapping[str, str | Path],
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    train_labels: str | Path | None = None,
    val_labels: str | Path | None = None,
    test_labels: str | Path | None = None,
    encoder: str | None = None,
    dataset: str | None = None,
    store: Literal["float32", "float16"] = "float32",
) -> FeatureStore:
    """Make a feature file from arrays: one .npz, .npy, .pt or .csv file per split. Nothing is unpickled.

    A .npz file or .pt dictionary contains one layer in each two-dimensional entry, shallow to deep, and the labels
    under labels, y or targets. A .npy file or .pt tensor is one layer. A .csv file with a header is one layer with one
    row per image and the labels in a column label, y or target. Model weights are not features: `probekit convert`
    reads those.

    Parameters
    ----------
    out : str or Path
        The feature file (HDF5). In Python also import_features({"train": path, "test": path}, out).
    train : str or Path
        Features of the training split. Without `test`, a stratified fifth of the rows is held out for testing.
    val : str or Path
        Features of the validation split, if there is a separate one.
    test : str or Path
        Features of the test split.
    train_labels : str or Path
        Labels of the training split, if its feature file has none.
    val_labels : str or Path
        Labels of the validation split, likewise.
    test_labels : str or Path
        Labels of the test split, likewise.
    encoder : str
        Name of the encoder, for tables and curves; by default the first file's name.
    dataset : str
        Name of the data set; by default the first file's name.
    store : str
        Precision of the stored features.

    Returns
    -------
    FeatureStore

    Raises
    ------
    UserError
        A file is missing, damaged, of an unsupported type, needs unpickling, or has no labels or several per image; one
        file is given for two splits; or a column contains row numbers.
    """
    target: Any = out
    if isinstance(out, Mapping):
        # in Python the first argument may be the files by split, and the second the file to write
        if unknown := [name for name in out if name not in ("train", "val", "test")]:
            raise UserError(f"There is no split {unknown[0]!r} to import; give train, val and test.")
        if twice := [name for name, path in (("val", val), ("test", test)) if path is not None and name in out]:
            raise UserError(f"{twice[0]} is given twice, by itself and in the mapping; leave one of them out.")
        target, train, val, test = train, out.get("train"), out.get("val", val), out.get("test", test)
    if target is None:
        raise UserError("No feature file to write was given; give out= (--out).")
    given = {"train": (train, train_labels), "val": (val, val_labels), "test": (test, test_labels)}
    files = {split: Path(path) for split, (path, _) in given.items() if path is not None}
    labels = {split: path for split, (_, path) in given.items() if path is not None}
    if not files:
        raise UserError(
            "No feature file was given to import; give one per split, as in --train train.npz --test test.npz."
        )
    if alone := sorted(labels.keys() - files):
        raise UserError(f"{alone[0]}_labels is given without {alone[0]}, the features that they belong to.")
    splits: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    options: dict[str, Any] = {}
    for split, path in files.items():
        layers, y = _layers_and_labels(Path(path), _load(Path(path)))
        if split in labels:
            own, y = y, _labels_alone(Path(labels[split]))
            if own is not None and not np.array_equal(own, y):
                raise UserError(f"{path} contains other labels than {labels[split]}: leave one of them out.")
        if y is None:
            raise UserError(f"{path} contains no labels ({', '.join(LABEL_KEYS)}); give their file as {split}_labels.")
        for same, (others, _) in splits.items():
            if list(others) == list(layers) and all(map(np.array_equal, others.values(), layers.values())):
                raise UserError(
                    f"{files[same]} and {path} have the same contents, so {same} would equal {split}; give each split "
                    "different rows, or --train alone to hold out a test split of it."
                )
        splits[split] = (layers, label_array(y, f"{path}: its labels"))
        hashes[split] = hash_file(path)
    rule: dict[str, Any] = {}
    if "train" in splits and "test" not in splits:
        rule, options["row_ids"] = _hold_out_test(splits)
    first = Path(next(iter(files.values())))
    return FeatureStore.from_arrays(
        target,
        splits,
        encoder={"name": encoder or first.stem, "imported_from": hashes},
        dataset={"name": dataset or first.stem, **rule},
        dtype=store,
        **options,
    )


def _hold_out_test(splits: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Move a stratified fifth of the training rows to the test split; return a description and the rows of both."""
    layers, y = splits["train"]
    check_rows("train", layers, y)
    kept, held = stratified_holdout(y, TEST_FRACTION)
    for split, rows in (("train", kept), ("test", held)):
        splits[split] = ({name: X[rows] for name, X in layers.items()}, y[rows])
    rule = {
        "test": f"stratified {TEST_FRACTION:g} of the training rows",
        "seed": 0,
        "function": "probekit.datasets.splits.stratified_holdout",
    }
    ids = {"train": kept, "test": held}
    if "val" in splits:
        ids["val"] = len(y) + np.arange(len(splits["val"][1]))
    return {"split_rule": rule}, ids


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file; give a .npy, .npz, .pt or .csv file.")
    if path.suffix == ".npy":
        return load_npy(path)
    if path.suffix == ".npz":
        return load_npz(path, free_memory())
    with explained(f"{path} cannot be read as plain arrays", "save tensors or arrays only, without Python objects"):
        open_regular(path).close()
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
            parts = content.values() if isinstance(content, Mapping) else content
            for one in [parts] if isinstance(parts, torch.Tensor) else parts:
                # with a stride of 0, a small file can declare any number of rows
                if is_plain(one) and one.nbytes > one.untyped_storage().nbytes():
                    raise UserError(
                        f"{path} contains fewer numbers than the {one.numel():,} that it declares; save tensor.clone()."
                    )
            return content
        if path.suffix == ".csv":
            return _read_csv(path)
    raise UserError(f"{path} ends in {path.suffix or 'nothing'}; expected .npy, .npz, .pt or .csv.")


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    """The numeric columns as one layer, float32 (N, D), and the label column, if there is one."""
    import pandas as pd

    frame = pd.read_csv(path)
    # if rows have more fields than the header, as R writes row names, pandas makes the first field the index
    index = frame.index
    unnamed = 0 if isinstance(index, pd.RangeIndex) else index.nlevels
    numbers = unnamed == 1 and index.to_numpy().dtype.kind in "iuf"
    if unnamed > 1 or (numbers and not _numbers_the_rows("index", index.to_numpy())):
        raise UserError(
            f"{path} has {frame.shape[1] + unnamed} fields per row but {frame.shape[1]} names in its header; "
            "name each column."
        )
    if any(_is_fraction(str(column)) for column in frame.columns):
        raise UserError(
            f"{path} has no header: its first line contains values; add a first line with the column names."
        )
    named = [column for column in frame.columns if str(column).strip().lower() in LABEL_KEYS]
    if len(named) > 1:
        raise UserError(f"{path} has several label columns ({', '.join(named)}); keep only one of them.")
    X = frame.drop(columns=named)
    # pandas calls a column without a name "Unnamed: 0"
    for column, values in X.items():
        nameless = str(column).startswith("Unnamed:")
        if nameless or _numbers_the_rows(str(column), values.to_numpy()):
            called = "without a name" if nameless else repr(column)
            raise UserError(
                f"{path} has a column {called} of row numbers, such as a pandas index, which would reveal the labels "
                "of sorted rows; leave it out (to_csv(index=False))."
            )
    content = {"00": X.to_numpy(np.float32)} if X.shape[1] else {}
    return content | ({"labels": frame[named[0]].to_numpy()} if named else {})


def _is_fraction(name: str) -> bool:
    """Whether a column name is a data value; an integer may be a name, because pandas numbers unnamed columns."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def _numbers_the_rows(name: str, values: np.ndarray) -> bool:
    """Whether a column contains row numbers: consecutive integers, or distinct integers under the name of an index."""
    if values.dtype.kind not in "iuf" or len(values) < 3 or not np.array_equal(values, np.round(values)):
        return False
    return bool((np.diff(values) == 1).all()) or (
        name.strip().lower() in INDEX_NAMES and len(np.unique(values)) == len(values)
    )


def _layers_and_labels(path: Path, content: Any) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    labels = None
    if isinstance(content, Mapping):
        named = {str(name): plain_array(value, f"{name} of {path}") for name, value in content.items()}
        if len(named) < len(content):
            raise UserError(f"{path} contains entries with the same name, such as 0 and '0'; rename one.")
        found = [name for name in LABEL_KEYS if name in named]
        if len(found) > 1:
            raise UserError(f"{path} contains several entries of labels ({', '.join(found)}); keep only one of them.")
        labels = named.pop(found[0]) if found else None
    elif isinstance(content, list | tuple):
        named = {f"{index:02d}": plain_array(value, f"entry {index} of {path}") for index, value in enumerate(content)}
    else:
        named = {"00": plain_array(content, str(path))}
    layers = {name: X for name, X in named.items() if X.ndim == 2}
    if not layers:
        shapes = ", ".join(f"{name} {X.shape}" for name, X in named.items())
        raise UserError(
            f"{path} contains {shapes or 'nothing'}; save the features as two-dimensional arrays (rows, width)."
        )
    ignored = [f"{name} {X.shape}" for name, X in named.items() if name not in layers]
    if ignored:
        warnings.warn(f"{path}: ignored {', '.join(ignored)}; features must have two dimensions.", stacklevel=3)
    return layers, labels


def _labels_alone(path: Path) -> np.ndarray:
    content = _load(path)
    if isinstance(content, Mapping):
        found = [name for name in LABEL_KEYS if name in content] or list(content)
        if len(found) != 1:
            raise UserError(
                f"{path} contains {', '.join(map(str, found)) or 'nothing'}, but one entry of labels was expected."
            )
        content = content[found[0]]
    return plain_array(content, f"the labels of {path}")
