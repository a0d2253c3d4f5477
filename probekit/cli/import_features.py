"""`probekit import`: features that somebody else made, as a feature file."""

from pathlib import Path
from typing import Literal

from probekit.cli.console import say


def import_(
    *,
    out: Path,
    train: Path | None = None,
    val: Path | None = None,
    test: Path | None = None,
    train_labels: Path | None = None,
    val_labels: Path | None = None,
    test_labels: Path | None = None,
    encoder: str | None = None,
    dataset: str | None = None,
    store: Literal["float32", "float16"] = "float32",
) -> None:
    """Make a feature file from arrays: one .npz, .npy, .pt or .csv file a split. Nothing is unpickled.

    A .npz file or .pt dictionary holds one layer a two-dimensional entry, shallow to deep, and the labels under labels,
    y or targets; a .npy file is one layer; a .csv file is one layer, one row an image, its labels in a column label, y
    or target. Weights of a model are no features: `probekit convert` brings those in.

    Parameters
    ----------
    out
        The feature file (HDF5).
    train
        Features of the training split.
    val
        Of the validation split, if there is one of its own.
    test
        Of the test split.
    train_labels
        Labels of the training split, where its features' file has none.
    val_labels
        Labels of the validation split, likewise.
    test_labels
        Labels of the test split, likewise.
    encoder
        Name of whatever made the features, for tables and curves; the first file's name unless given.
    dataset
        Name of the data set; the first file's name unless given.
    store
        How features are stored.
    """
    from probekit.features.importing import import_features

    files = {name: path for name, path in (("train", train), ("val", val), ("test", test)) if path is not None}
    beside = {"train": train_labels, "val": val_labels, "test": test_labels}
    labels = {name: path for name, path in beside.items() if path is not None}
    features = import_features(files, out, labels, encoder, dataset, store)
    rows = ", ".join(f"{split} {len(features.labels(split)):,}" for split in features.splits)
    say(f"{out}: layers {', '.join(features.layers)}, rows {rows} (next: probekit sweep {out})")
