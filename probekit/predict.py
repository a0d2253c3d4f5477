"""Predictions of a stored probe on new images: the probe's record says which layers of which encoder it reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probekit.datasets.images import decode
from probekit.encoders.protocol import Encoder
from probekit.errors import UserError
from probekit.features.layout import file_layer_names
from probekit.probes.objective import log_probabilities, logits
from probekit.results.records import RESULTS_NAME, Record, read_records
from probekit.results.rows import load_probe

if TYPE_CHECKING:
    import pandas as pd

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
HASHES = ("weights_hash", "palette_hash")


def find_record(probe: str | Path) -> Record:
    """The record of a probe file (`RESULTS/probes/KEY.safetensors`); a `UserError` where there is none."""
    path = Path(probe)
    if not path.is_file():
        raise UserError(f"There is no probe file {path}; give one of RESULTS/probes/*.safetensors.")
    journal = path.parent.parent / RESULTS_NAME
    found = [record for record in read_records(journal) if record.key == path.stem] if journal.is_file() else []
    if not found:
        raise UserError(f"{journal} holds no record of {path.name}, so its encoder and layers are not known.")
    return found[0]


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files from files and folders (searched through), in order; a `UserError` where there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give image files or folders.")
    if not found:
        raise UserError(f"No image file ({', '.join(IMAGE_SUFFIXES)}) lies in {', '.join(map(str, paths))}.")
    return found


def predict(probe: str | Path, images: Sequence[str | Path], encoder: Encoder, batch_size: int = 128) -> "pd.DataFrame":
    """Class and probability of each image file.

    Parameters
    ----------
    probe : file of a probe that a sweep or concatenation made, in its results folder
    images : image files or folders
    encoder : the one whose features the probe was fitted on; its weights' hash is compared with the record's

    Returns
    -------
    DataFrame
        image, class (the label's number as in the data set), probability.

    Raises
    ------
    UserError
        The probe has no record, the encoder is another one, or an image cannot be decoded.
    """
    import pandas as pd

    record, files = find_record(probe), list_images(images)
    if record.kind not in ("layer", "concat"):
        raise UserError(f"{probe} is a {record.kind} probe; only plain linear probes of layers can predict.")
    for name in HASHES:
        theirs, ours = record.encoder.get(name), encoder.provenance.get(name)
        if theirs and theirs != ours:
            raise UserError(f"The probe was fitted on an encoder of {name} {theirs}, but this one has {ours}.")
    names = file_layer_names(encoder.layers)
    missing = [layer for layer in record.layers if layer not in names]
    if missing:
        raise UserError(f"The encoder has no layer {missing[0]}, which the probe reads; it has {', '.join(names)}.")
    columns = [names.index(layer) for layer in record.layers]
    arrays = load_probe(probe)
    classes, best, probability = arrays["classes"], [], []
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        prepared = np.stack([encoder.prepare(decode(path.read_bytes(), str(path))) for path in part])
        features = encoder(prepared, np.arange(start, start + len(part)))
        X = np.concatenate([features[i].float().cpu().numpy() for i in columns], axis=1)
        if record.protocol.get("normalize"):
            X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        log_proba = log_probabilities(logits(X, arrays["coef"], arrays["intercept"]))
        best.append(log_proba.argmax(axis=1))
        probability.append(np.exp(log_proba.max(axis=1)))
    label = classes[np.concatenate(best)]
    frame = pd.DataFrame({"image": [str(path) for path in files], "class": label})
    return frame.assign(probability=np.concatenate(probability))
