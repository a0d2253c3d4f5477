"""Checkpoints: one folder each, written atomically, with everything needed for features and resuming, without pickle.

    weights.safetensors  config.json  palette.safetensors  transform.json  manifest.json
    trainer.safetensors  trainer.json    (for resuming)

A run that shards its model over ranks writes folders `weights/` and `trainer/` of shards instead of the two large
files; both can be read. The manifest is written last and contains the hash of every file.
"""

import re
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from igpt_model.arguments import checked
from igpt_model.atomic import new_folder, write_json
from igpt_model.checked_json import Int, Text, open_regular, read_json
from igpt_model.config import ModelConfig
from igpt_model.devices import find_device
from igpt_model.errors import UserError, first_line
from igpt_model.hashing import hash_arrays, hash_file
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.palette import Palette
from igpt_model.process_group import Ranks

FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")
HEAD = "classifier"  # file of a fine-tuned model's head
_HASH = Text(32)
_ABOUT = {
    "format": Int(0),
    "step": Int(0),
    "model": dict,
    "weights_hash": (_HASH, None),  # unknown for shards until they are read
    "palette_hash": _HASH,
    "provenance": dict,
}


class DamagedCheckpoint(UserError):  # noqa: N818 (it names a state, as FileNotFound does)
    """A checkpoint with missing or altered files."""


@dataclass
class Checkpoint:
    """A trained model with its palette, transform and provenance."""

    model: IGPT
    config: ModelConfig
    palette: Palette
    transform: ImageTransform
    step: int
    weights_hash: str
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    trainer: dict[str, Any] | None = None  # the values of trainer.json, where a run is resumed


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    """Return the folder of a step's checkpoint: `run_dir/checkpoints/0000060`."""
    return Path(run_dir) / "checkpoints" / f"{step:07d}"


def save_checkpoint(
    folder: str | Path,
    model: IGPT,
    palette: Palette,
    transform: ImageTransform,
    step: int,
    trainer_state: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint to a hidden folder next to `folder`, then rename it to `folder`.

    Parameters
    ----------
    trainer_state : (tensors, JSON values), optional
        State for resuming, besides the weights.
    provenance : mapping, optional
        JSON values about the model's origin: data, training settings, versions.
    ranks : Ranks, optional
        The processes that train together, which must all call. With "fsdp" each writes its shards.
    head : tensors by name, optional
        The head of a fine-tuned model.

    Raises
    ------
    UserError
        `folder` already exists with different contents.
    """
    ranks, folder = ranks or Ranks(), Path(folder)
    split = ranks.parallel == "fsdp"  # the hash is known only once all shards are read
    about = {
        "format": FORMAT,
        "step": step,
        "model": model.config.to_dict(),
        "weights_hash": None if split or not ranks.first else hash_arrays(model.state_dict()),
        "palette_hash": palette.hash,
        "n_colours": len(palette),
        "provenance": dict(provenance or {}),
    }
    with ExitStack() as stack:
        partial = ranks.once(lambda: stack.enter_context(new_folder(folder)))
        _write_tensors(partial, "weights", model.state_dict(), ranks)
        if trainer_state is not None:
            _write_tensors(partial, "trainer", trainer_state[0], ranks)
        if ranks.first:
            palette.save(partial / "palette.safetensors")
            if head is not None:
                _write_tensors(partial, HEAD, head, Ranks())
            write_json(partial / "config.json", about)
            write_json(partial / "transform.json", transform.to_dict())
            if trainer_state is not None:
                write_json(partial / "trainer.json", dict(trainer_state[1]))
        ranks.gather(None)  # wait until all files are written
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        hashes = {str(f.relative_to(partial)): hash_file(f) for f in files[ranks.rank :: ranks.size]}
        manifest = {name: value for part in ranks.gather(hashes) for name, value in part.items()}
        if ranks.first:
            write_json(partial / "manifest.json", manifest)
    ranks.gather(None)  # no rank continues until the checkpoint is complete
    return folder


@checked
def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the run's checkpoint folders, oldest first, including damaged ones."""
    folders = (Path(run_dir) / "checkpoints").glob("[0-9]*")
    return sorted((f for f in folders if re.fullmatch("[0-9]{1,15}", f.name) and f.is_dir()), key=lambda f: int(f.name))


@checked
def latest_checkpoint(run_dir: str | Path, step: int | None = None) -> Path:
    """Return the folder of a run's newest checkpoint, or of the one of `step`, checked as by `check_latest`."""
    path = check_latest(run_dir, step).path
    assert path is not None
    return path


@checked
def check_latest(run_dir: str | Path, step: int | None = None) -> Checkpoint:
    """Check the newest checkpoint of a run, or the one of `step`; return all of it but the weights.

    Raises
    ------
    UserError
        There is no run, no checkpoint, or no checkpoint of that step.
    DamagedCheckpoint
        It is damaged; the message names the last good one. There is no silent fallback to older weights.
    """
    found = list_checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir} contains no checkpoints; give the folder of a run made by `probekit train`.")
    by_step = {int(folder.name): folder for folder in found}
    if step is not None and step not in by_step:
        steps = ", ".join(map(str, by_step))
        raise UserError(f"{run_dir} has no checkpoint of step {step}; choose one of {steps}.")
    chosen = found[-1] if step is None else by_step[step]
    try:
        return check_checkpoint(chosen)
    except DamagedCheckpoint as error:
        good = next((int(f.name) for f in reversed(found) if f != chosen and _is_good(f)), None)
        hint = "there is no other good one" if good is None else f"the last good one is of step {good} (RUN@{good})"
        raise DamagedCheckpoint(f"{str(error).rstrip('.')}; {hint}.") from error


def newest_good(run_dir: str | Path, trainer: Any = dict) -> tuple[Checkpoint | None, list[dict[str, Any]]]:
    """Return the newest good checkpoint that can be resumed, without weights, and a record for each damaged one.

    Damaged ones, of which `trainer.json` is not as the schema says among them, are renamed; those without optimiser
    state are skipped.
    """
    events: list[dict[str, Any]] = []
    for candidate in reversed(list_checkpoints(run_dir)):
        try:
            found = check_checkpoint(candidate, trainer)
        except DamagedCheckpoint as error:
            aside = candidate.with_name(f"damaged-{candidate.name}-{time.time_ns()}")
            candidate.rename(aside)
            events.append({"kind": "damaged", "step": int(candidate.name), "path": str(aside), "reason": str(error)})
        else:
            if found.trainer is not None:
                return found, events
    return None, events


@checked
def load_checkpoint(source: str | Path | Checkpoint, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a checkpoint's model (in evaluation mode), palette and transform.

    `source` is the folder of a checkpoint, or of a run, whose newest one is loaded, or a result of `check_checkpoint`.

    Raises
    ------
    UserError
        The checkpoint is missing, damaged, or written by a newer version, or its palette was replaced.
    """
    if isinstance(source, Checkpoint):
        found = source
    else:
        folder = Path(source)
        is_run = not (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()
        found = check_latest(folder) if is_run else check_checkpoint(folder)
    state = read_weights(found)
    found.weights_hash = found.provenance["weights_hash"] = found.weights_hash or hash_arrays(state)
    found.model = IGPT.from_state(found.config, state, str(found.path)).to(find_device(device)).eval()
    return found


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return a checkpoint's full weights; `DamagedCheckpoint` if their hash differs from the one in `config.json`."""
    assert checkpoint.path is not None
    state = read_tensors(checkpoint.path, "weights")
    if checkpoint.weights_hash and hash_arrays(state) != checkpoint.weights_hash:
        raise DamagedCheckpoint(
            f"The checkpoint {checkpoint.path} is damaged: its weights do not match the hash in config.json."
        )
    return state


@checked
def consolidate(source: str | Path, target: str | Path) -> Path:
    """Write a sharded checkpoint (or a run's newest) as a new one with a single weights file, without optimiser."""
    loaded = load_checkpoint(source)
    return save_checkpoint(
        target, loaded.model, loaded.palette, loaded.transform, loaded.step, provenance=loaded.provenance
    )


def prune_checkpoints(run_dir: str | Path, keep_last: int, keep: set[int]) -> list[Path]:
    """Remove checkpoints that are not among the newest `keep_last` or of a step in `keep`; return the removed ones.

    Older kept checkpoints lose their optimiser state (twice the size of the weights), which only resuming needs.
    Remains of interrupted writes are also removed.
    """
    folders = list_checkpoints(run_dir)
    for partial in (Path(run_dir) / "checkpoints").glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    removed = []
    for folder in folders[: -max(1, keep_last)]:
        if int(folder.name) in keep:
            # remove trainer.json first, so that a kill does not leave a checkpoint that only seems resumable
            for name in ("trainer.json", "trainer.safetensors"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "trainer", ignore_errors=True)
            continue
        # rename first, so that a kill does not leave a damaged checkpoint
        doomed = folder.with_name(f".{folder.name}.doomed.partial")
        folder.rename(doomed)
        shutil.rmtree(doomed)
        removed.append(folder)
    return removed


@checked
def check_checkpoint(folder: str | Path, trainer: Any = None) -> Checkpoint:
    """Compare every file with the manifest, and the files with one another; return all but the weights.

    The model stays on the meta device. `trainer.json`, which only resuming needs, is read by the schema `trainer`.

    Raises
    ------
    DamagedCheckpoint
        A file is missing, truncated, altered or invalid; the message names it.
    UserError
        A newer version wrote it.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / "manifest.json", {str: _HASH})
        _check_listed(folder, manifest)
        for name, expected in manifest.items():
            if name.startswith("trainer") and not (folder / name).exists():
                continue  # removed from older kept checkpoints to save disk space
            if hash_file(folder / name) != expected:
                raise UserError(f"{name} was altered after it was written.")
        about = read_about(folder)
        if about["format"] == FORMAT:
            return _read_parts(folder, about, trainer)
    except (OSError, UserError, SafetensorError) as error:
        raise DamagedCheckpoint(f"The checkpoint {folder} is damaged: {str(error).rstrip('.')}.") from error
    raise UserError(f"{folder} has checkpoint format {about['format']}, but this version reads {FORMAT}.")


def _check_listed(folder: Path, manifest: Mapping[str, str]) -> None:
    """Raise if a manifest lists a file outside the folder, or does not list a required file."""
    for name in manifest:
        if not re.fullmatch(r"(weights/|trainer/)?[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UserError(f"its manifest lists {name!r}, which is outside its folder.")
    if "weights.safetensors" not in manifest and not any(name.startswith("weights/") for name in manifest):
        raise UserError("its manifest lists no weights.")
    present = (file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json") and not file.is_dir())
    needed = {"config.json", "palette.safetensors", "transform.json", *(str(f.relative_to(folder)) for f in present)}
    missing = sorted(needed - {*manifest, "manifest.json"})
    if missing:
        raise UserError(f"its manifest does not list {missing[0]}.")


def _read_parts(folder: Path, about: Mapping[str, Any], trainer: Any) -> Checkpoint:
    """Return a checkpoint without its weights; refuse parts that cannot be of one model."""
    config, palette = ModelConfig.from_dict(about["model"]), Palette.load(folder / "palette.safetensors")
    transform = ImageTransform.from_dict(read_json(folder / "transform.json"))
    if palette.hash != about["palette_hash"] or len(palette) != config.vocab_size:
        raise UserError(
            f"The palette in {folder} is not the one its model was trained with; restore the original file."
        )
    trained, tuned = (about["provenance"].get(name) for name in ("train", "finetune"))
    settings = (trained, tuned.get("config") if isinstance(tuned, dict) else None)
    given = {name: value for one in settings if isinstance(one, dict) for name, value in one.items()} | dict(about)
    own = {**config.to_dict(), **transform.to_dict(), "n_colours": config.vocab_size}
    own["objective"] = "autoregressive" if config.causal else "bert"
    for name in sorted(own.keys() & given.keys()):
        if given[name] not in (None, 0, own[name]):  # None is a preset's size, 0 the resolution of pre-training
            raise UserError(f"{folder / 'config.json'} has contradictory values of {name}; restore the original file.")
    if transform.resolution**2 != config.n_positions:
        raise UserError(
            f"{folder / 'transform.json'} makes images of {transform.resolution} pixels per side, but the model in "
            f"config.json has {config.n_positions} positions; restore the original files."
        )
    if folder.parent.name == "checkpoints" and folder.name.isdecimal() and int(folder.name) != about["step"]:
        raise UserError(f"{folder} does not have the name of the step in its config.json ({about['step']}); rename it.")
    if about["weights_hash"] is None and not (folder / "weights").is_dir():
        raise UserError(f"{folder / 'config.json'} has no weights_hash; restore the original file.")
    with torch.device("meta"):
        model = IGPT(config)
    _check_tensors(folder, model, about)
    hashes = {"weights_hash": about["weights_hash"], "palette_hash": about["palette_hash"]}
    resumable = trainer is not None and (folder / "trainer.json").is_file()
    state = read_json(folder / "trainer.json", trainer) if resumable else None
    provenance = {**about["provenance"], **hashes}
    return Checkpoint(
        model, config, palette, transform, about["step"], hashes["weights_hash"], provenance, folder, state
    )


def _check_tensors(folder: Path, model: IGPT, about: Mapping[str, Any]) -> None:
    """Raise if the headers of tensor files cannot be read or do not match the configured model and its optimiser."""
    expected = {"weights": {name: list(value.shape) for name, value in model.state_dict().items()}}
    tuned = about["provenance"].get("finetune")
    classes = tuned.get("classes") if isinstance(tuned, dict) else None
    if isinstance(classes, list):
        expected[HEAD] = {"clf.weight": [len(classes), model.config.n_embd]}
    owners = {**expected["weights"], **{f"igpt.{name}": shape for name, shape in expected["weights"].items()}}
    owners |= expected.get(HEAD, {})
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            shapes = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            if file.stem == "trainer":  # AdamW's state exists for all parameters that have had a gradient
                present = {name.rpartition("/")[0] for name in shapes} & set(owners)
                expected["trainer"] = {f"{name}/{key}": owners[name] for name in present for key in _MOMENTS}
                expected["trainer"] |= {f"{name}/step": [] for name in present}
            if shapes != expected.get(file.stem, shapes):
                raise UserError(f"{file.name} does not match its config.json.")
            steps = [name for name in shapes if name.endswith("/step")] if file.stem == "trainer" else []
            others = {float(opened.get_tensor(name)) for name in steps} - {float(about["step"])}
        if others:
            raise UserError(f"the step of {file.name} differs from its config.json's ({about['step']}).")
    if (folder / "trainer.json").exists():  # older kept checkpoints have neither file
        for name in ("trainer", HEAD) if tuned else ("trainer",):
            if not (folder / f"{name}.safetensors").is_file() and not (folder / name).is_dir():
                raise UserError(f"it has a trainer.json but no {name}.safetensors.")


def read_about(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `config.json`: format, step, model, hashes and provenance."""
    return read_json(folder / "config.json", _ABOUT)


def _is_good(folder: Path) -> bool:
    try:
        check_checkpoint(folder)
    except DamagedCheckpoint:
        return False
    return True


# Tensors are in one safetensors file, or in a folder with one file per rank by torch.distributed.checkpoint. Any number
# of ranks can read files written by any number, because each file's header says which part of a tensor it contains.


def _write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Write `name`; with "fsdp" (every rank must call) this rank's parts, and tensors that all ranks have only once."""
    if ranks.parallel == "fsdp":
        _distributed("save", tensors, storage_writer=_storage("Writer")(str(folder / name), save_distributed=True))
    elif ranks.first:
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / f"{name}.safetensors")


def fill_from_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read this rank's parts into the given tensors; every rank must call it."""
    _distributed("load", tensors, storage_reader=_storage("Reader")(str(folder)))


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the full tensors of "weights", "trainer" or `HEAD` on the CPU, without communication.

    Raises
    ------
    DamagedCheckpoint
        They cannot be read.
    """
    file, shards = folder / f"{name}.safetensors", folder / name
    if file.exists() or not shards.is_dir():
        try:
            open_regular(file).close()  # opening a pipe or a device could block
            tensors = load_file(file)
            for key, value in tensors.items():
                negative = key.endswith("/exp_avg_sq") and bool((value < 0).any())  # the second moment
                if value.dtype != torch.float32 or not torch.isfinite(value).all() or negative:
                    raise UserError(f"{key} has values that are not valid in a checkpoint's float32 tensors")
            return tensors
        except (OSError, SafetensorError, UserError) as error:
            raise DamagedCheckpoint(f"The checkpoint file {file} cannot be read ({first_line(error)}).") from error
    reader = _storage("Reader")(str(shards))
    try:
        known = reader.read_metadata().state_dict_metadata
        tensors = {key: torch.empty(about.size, dtype=about.properties.dtype) for key, about in known.items()}
        _distributed("load", tensors, storage_reader=reader, no_dist=True)
        return tensors
    except Exception as error:  # torch.distributed.checkpoint has no specific error class for damaged files
        raise DamagedCheckpoint(f"The checkpoint files in {shards} cannot be read ({first_line(error)}).") from error


def _storage(kind: str) -> Any:
    from torch.distributed import checkpoint as dcp

    return getattr(dcp, f"HuggingFaceStorage{kind}")


def _distributed(verb: str, tensors: Mapping[str, Tensor], **options: Any) -> None:
    from torch.distributed import checkpoint as dcp

    with warnings.catch_warnings():  # a single process may read or write a checkpoint
        warnings.simplefilter("ignore")
        getattr(dcp, verb)(dict(tensors), **options)
