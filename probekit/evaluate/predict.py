"""Predictions of a stored probe on new images; the probe's record names the layers and the encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igpt_model.arguments import checked
from igpt_model.checked_json import Int, Text, mismatch, read_bytes
from igpt_model.differences import differences
from igpt_model.ranges import check_at_least
from probekit.datasets.images import Decoding, decode
from probekit.datasets.listing import SUFFIXES, list_folder
from probekit.encoders.encoder import Encoder
from probekit.features.format import content
from probekit.features.lazy_features import training_features
from probekit.features.store import FeatureStore
from probekit.probes.probe import FittedProbe, restore
from probekit.results.predictions import load_probe
from probekit.results.record import RESULTS_NAME, Record, read_records
from probekit.results.results import Results
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_SOURCES = {
    "pixels": {"resolution": Int(1, 65_536)},
    "histogram": {"resolution": Int(1, 65_536)},
    "igpt": {"checkpoint": Text(), "norm": str, "input": str},
}
# what may differ between the encoder of the features and the one that is given
MAY_DIFFER = {"name", "device", "dtype", "step", "training", "function", "note"}  # and its location
MAY_DIFFER |= {"depths", "last_depth"}  # which of its layers were kept: the probe's are found by name


def find_record(probe: str | Path, series: str | None = None) -> Record:
    """The record of a probe: of RESULTS/probes/KEY.safetensors, or the best single layer of a results folder.

    Parameters
    ----------
    series : which series of a results folder, where it has several
    """
    path = Path(probe)
    if path.is_dir():
        return Results(path).best(series)
    if not path.is_file():
        raise UserError(f"There is no probe file {path}; give one of RESULTS/probes/*.safetensors, or RESULTS.")
    journal = path.parent.parent / RESULTS_NAME
    found = [record for record in read_records(journal) if record.key == path.stem] if journal.is_file() else []
    if not found:
        raise UserError(f"{journal} contains no record of {path.name}, so its encoder and layers are not known.")
    return found[0]


def load_fitted(record: Record, device: str = "cpu") -> FittedProbe:
    """The fitted probe of a record that was read from disk; a `UserError` if it or features it needs are missing."""
    folder = record.folder or Path()

    def read_rows(positions: np.ndarray) -> np.ndarray:
        store = FeatureStore.open(folder / record.feature_file)
        normalize = bool(record.protocol.get("normalize"))
        return np.asarray(training_features(store, record.layers, positions, normalize))

    path = folder / record.probe_file
    return restore(record.probe, load_probe(path), record.width, read_rows, device, path)


def encoder_of(record: Record) -> tuple[str, dict[str, Any]]:
    """The arguments of `load_encoder` for a record's encoder: its name, and options from its provenance.

    Raises
    ------
    UserError
        The provenance does not identify the encoder: one of Hugging Face's, timm's, random weights, or a run that was
        moved.
    """
    about, kind = record.encoder, str(record.encoder.get("kind"))
    known = kind in _SOURCES and mismatch(about, _SOURCES[kind]) is None
    if known and kind != "igpt":
        return f"{kind}:{about['resolution']}", {}
    if known and Path(about["checkpoint"]).is_dir():
        options = {"norm": about["norm"] != "none"}
        return f"igpt:{about['checkpoint']}", options | ({"masked": False} if about["input"] == "all pixels" else {})
    raise UserError(
        f"The record of this probe does not say where its encoder ({about.get('name', 'unnamed')}) is now; give it "
        "with --encoder, as in `probekit extract`."
    )


def layer_index(layer: str, layers: Sequence[str]) -> int:
    """Which of an encoder's layers a feature file calls `layer`: by its name, or by the part after the number."""
    plain = [name.replace("/", ".") for name in layers]
    for name in (layer, layer.partition("_")[2]):
        if name in plain:
            return plain.index(name)
    raise UserError(f"The encoder has no layer {layer}, which the probe reads; it has {', '.join(layers)}.")


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files from files and folders (searched through), in order; a `UserError` where there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(path / name for name, _ in list_folder(path).files)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give image files or folders.")
    if not found:
        raise UserError(f"There is no image file ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}.")
    return found


@checked
def predict(record: Record, images: Sequence[str | Path], encoder: Encoder, batch_size: int = 128) -> "pd.DataFrame":
    """Class and probability of each image file.

    Parameters
    ----------
    record : of a probe that a sweep or concatenation made (see `find_record`)
    images : image files or folders; they are decoded (`--exif`, `--value-range`) as those of the features were
    encoder : the one whose features the probe was fitted on; its provenance is compared with the record's

    Returns
    -------
    DataFrame
        image, class (the label's number as in the data set), name (its name; left out where none is known),
        probability.

    Raises
    ------
    UserError
        The encoder is another one, or an image cannot be decoded.
    """
    import pandas as pd

    check_at_least(batch_size=(batch_size, 1))
    files = list_images(images)
    known = {key: value for key, value in content(record.encoder).items() if key not in MAY_DIFFER}
    given = content(encoder.provenance)
    other = list(differences(known, {key: given.get(key) for key in known}))
    if other:
        raise UserError(f"The probe was fitted on the features of another encoder ({'; '.join(other[:3])}).")
    columns = [layer_index(layer, encoder.layers) for layer in record.layers]
    fitted = load_fitted(record)
    how = Decoding.from_dict(record.dataset.get("decoding") or {})
    best, probability = [], []
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        prepared = np.stack([encoder.prepare(decode(read_bytes(path), str(path), how)) for path in part])
        features = encoder(prepared, np.arange(start, start + len(part)))
        X = np.concatenate([features[i].float().cpu().numpy() for i in columns], axis=1)
        if record.protocol.get("normalize"):
            X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        log_proba = fitted.predict_log_proba(X)
        best.append(log_proba.argmax(axis=1))
        probability.append(np.exp(log_proba.max(axis=1)))
    label = fitted.classes[np.concatenate(best)]
    frame = pd.DataFrame({"image": [str(path) for path in files], "class": label})
    path = (record.folder or Path()) / record.feature_file
    if record.folder is not None and path.is_file() and (named := FeatureStore.open(path).classes):
        frame["name"] = [named[k] if 0 <= k < len(named) else str(k) for k in label]
    return frame.assign(probability=np.concatenate(probability))
