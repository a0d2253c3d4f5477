"""What makes a checkpoint whole: the files that it needs, each listed with its hash, and each as it must be."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from igpt_model.checked_json import Int, Text, open_regular, read_json
from igpt_model.config import ModelConfig
from igpt_model.errors import UserError, first_line
from igpt_model.hashing import hash_file
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT

FORMAT = 1
_HASH = Text(32)
_ABOUT = {
    "format": Int(0),
    "step": Int(0),
    "model": dict,
    "weights_hash": (_HASH, None),  # of shards: known once they are read
    "palette_hash": _HASH,
    "provenance": dict,
}
_NEEDED = ("config.json", "palette.safetensors", "transform.json")


class DamagedCheckpoint(UserError):  # noqa: N818 (it names a state, as FileNotFound does)
    """A checkpoint whose files are missing or are not those that were written."""


def check_checkpoint(folder: str | Path) -> None:
    """Compare every file with the manifest, and the manifest with what a checkpoint needs; read its JSON files.

    Raises
    ------
    DamagedCheckpoint
        A file is missing, cut short, altered or not as it must be; the message names it.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / "manifest.json", {str: _HASH})
        _check_listed(folder, manifest)
        for name, expected in manifest.items():
            if name.startswith("trainer") and not (folder / name).exists():
                continue  # older kept checkpoints lose them to save disk
            if hash_file(folder / name) != expected:
                raise UserError(f"{name} is not the file that was written.")
        about = read_about(folder)
        if about["format"] == FORMAT:  # else `load_checkpoint` says that another version is needed
            _check_tensors(folder, ModelConfig.from_dict(about["model"]))
        ImageTransform.from_dict(read_json(folder / "transform.json"))
    except (OSError, UserError, SafetensorError) as error:
        raise DamagedCheckpoint(f"The checkpoint {folder} is damaged: {str(error).rstrip('.')}.") from error


def _check_listed(folder: Path, manifest: Mapping[str, str]) -> None:
    """Refuse a manifest that lists a file elsewhere, or does not list one that is read."""
    for name in manifest:
        if not re.fullmatch(r"(weights/|trainer/)?[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UserError(f"its manifest lists {name!r}, outside it.")
    if "weights.safetensors" not in manifest and not any(name.startswith("weights/") for name in manifest):
        raise UserError("its manifest lists no weights.")
    present = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json") and not file.is_dir()]
    for name in [*_NEEDED, *sorted(str(file.relative_to(folder)) for file in present)]:
        if name not in manifest and name != "manifest.json":
            raise UserError(f"its manifest does not list {name}.")


def _check_tensors(folder: Path, config: ModelConfig) -> None:
    """Refuse tensor files whose headers cannot be read, or weights that are not those of the configured model."""
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            shapes = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        if file.name == "weights.safetensors":
            with torch.device("meta"):
                expected = {name: list(value.shape) for name, value in IGPT(config).state_dict().items()}
            if shapes != expected:
                raise UserError("its weights do not fit its config.json.")


def read_about(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `config.json`: format, step, model, hashes and provenance."""
    return read_json(folder / "config.json", _ABOUT)


def is_good(folder: Path) -> bool:
    """Say whether a checkpoint agrees with its manifest."""
    try:
        check_checkpoint(folder)
    except DamagedCheckpoint:
        return False
    return True


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's safetensors file; `DamagedCheckpoint` where it cannot be read."""
    try:
        open_regular(path).close()  # a pipe or a device would be waited for
        return load_file(path)
    except (OSError, SafetensorError, UserError) as error:
        raise DamagedCheckpoint(f"The checkpoint file {path} cannot be read ({first_line(error)}).") from error
