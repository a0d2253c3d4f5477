"""Predict the classes of new images with a stored probe, whose record names the layers and the encoder."""

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
# provenance that may differ between the encoder of the features and the given one
MAY_DIFFER = {"name", "device", "dtype", "step", "training", "function", "note"}  # and its location
MAY_DIFFER |= {"depths", "last_depth"}  # which of its layers were kept: the probe's are found by name


def find_record(probe: str | Path, series: str | None = None) -> Record:
    """The record of a probe: of RESULTS/probes/KEY.safetensors, or the best single layer of a results folder.

    Parameters
    ----------
    series : which series of a results folder, if it has several
    """
    path = Path(probe)
    if path.is_dir():
        return Results(path).best(series)
    if not path.is_file():
        raise UserError(f"Probe file {path} does not exist; give one of RESULTS/probes/*.safetensors, or RESULTS.")
    journal = path.parent.parent / RESULTS_NAME
    found = [record for record in read_records(journal) if record.key == path.stem] if journal.is_file() else []
    if not found:
        raise UserError(f"{journal} has no record of {path.name}, which names its encoder and layers; put it back.")
    return found[0]


def load_fitted(record: Record, device: str = "cpu") -> FittedProbe:
    """The fitted probe of a record, read from disk; `UserError` if its file or features it needs are missing."""
    folder = record.folder or Path()

    def read_rows(positions: np.ndarray) -> np.ndarray:
        store = FeatureStore.open(folder / record.feature_file)
        normalize = bool(record.protocol.get("normalize"))
        return np.asarray(training_features(store, record.layers, positions, normalize))

    path = folder / record.probe_file
    return restore(record.probe, load_probe(path), record.width, read_rows, device, path)


def encoder_of(record: Record) -> tuple[str, dict[str, Any]]:
    """The arguments of `load_encoder` for a record's encoder: its name, and its options from the provenance.

    Raises
    ------
    UserError
        The provenance does not identify the encoder: it is from Hugging Face or timm, has random weights, or is a run
        that was moved.
    """
    about, kind = record.encoder, str(record.encoder.get("kind"))
    known = kind in _SOURCES and mismatch(about, _SOURCES[kind]) is None
    if known and kind != "igpt":
        return f"{kind}:{about['resolution']}", {}
    if known and Path(about["checkpoint"]).is_dir():
        options = {"norm": about["norm"] != "none"}
        return f"igpt:{about['checkpoint']}", options | ({"masked": False} if about["input"] == "all pixels" else {})
    raise UserError(
        f"The record of this probe does not say where its encoder ({about.get('name', 'unnamed')}) is; give it "
        "with --encoder, as in `probekit extract`."
    )


def layer_index(layer: str, layers: Sequence[str]) -> int:
    """The encoder's layer that a feature file calls `layer`, by the whole name or the part after the number."""
    plain = [name.replace("/", ".") for name in layers]
    for name in (layer, layer.partition("_")[2]):
        if name in plain:
            return plain.index(name)
    raise UserError(f"The probe reads layer {layer}, but the encoder has {', '.join(layers)}; give its own encoder.")


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files among files and in folders (recursively), in order; `UserError` if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(path / name for name, _ in list_folder(path).files)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give image files or folders.")
    if not found:
        raise UserError(f"No image files in {', '.join(map(str, paths))}; give files ending in {', '.join(SUFFIXES)}.")
    return found


@checked
def predict(record: Record, images: Sequence[str | Path], encoder: Encoder, batch_size: int = 128) -> "pd.DataFrame":
    """Class and probability of each image file.

    Parameters
    ----------
    record : of a probe fitted by `sweep` or `concat` (see `find_record`)
    images : image files or folders; decoded (`--exif`, `--value-range`) as the images of the features were
    encoder : the encoder whose features the probe was fitted on; its provenance is compared with the record's
    batch_size : images in one forward pass

    Returns
    -------
    DataFrame
        image, class (label as in the data set), name (of the class; omitted if unknown), probability.

    Raises
    ------
    UserError
        The encoder differs from the record's, or an image cannot be decoded.
    """
    import pandas as pd

    check_at_least(batch_size=(batch_size, 1))
    files = list_images(images)
    known = {key: value for key, value in content(record.encoder).items() if key not in MAY_DIFFER}
    given = content(encoder.provenance)
    other = list(differences(known, {key: given.get(key) for key in known}))
    if other:
        raise UserError(f"The probe was fitted on another encoder ({'; '.join(other[:3])}); give that one.")
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
