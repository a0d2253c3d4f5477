"""`probekit convert`: weights from OpenAI or Hugging Face to a run folder, and from a run to Hugging Face's format."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.cli.console import note, say
from probekit.runtime.errors import UserError
from probekit.runtime.escape import command

if TYPE_CHECKING:
    from igpt_model.images import ImageTransform
    from igpt_model.model import IGPT
    from igpt_model.palette import Palette


def convert(source: str, target: Path, *, palette: Path | None = None, bert: bool = False) -> dict[str, Any]:
    """Convert weights: OpenAI's or Hugging Face's become a run folder, a run becomes a Hugging Face folder.

    Parameters
    ----------
    source
        A run (RUN or RUN@STEP), a folder written by save_pretrained, or one of OpenAI's TensorFlow checkpoints
        (the prefix model.ckpt-1000000, the .index file, or a folder with one checkpoint).
    target
        A new folder.
    palette
        For a TensorFlow checkpoint: kmeans_centers.npy, if it is in another folder.
    bert
        For a TensorFlow checkpoint: the model is one of the BERT models.
    """
    from igpt_model.convert.huggingface import from_pretrained_folder, to_pretrained_folder
    from igpt_model.convert.openai import from_openai_checkpoint, what_to_expect
    from igpt_model.training.checkpoint import load_checkpoint
    from probekit.encoders.igpt import find_checkpoint

    if os.path.lexists(target) and not any((target / name).exists() for name in ("config.json", "checkpoints")):
        raise UserError(f"{target} already exists and is not a converted model; give a new folder.")
    folder = Path(source)
    if folder.suffix == ".index" or Path(f"{source}.index").is_file() or next(folder.glob("*.index"), None):
        model, colours, transform = from_openai_checkpoint(folder, palette, causal=not bert)
        written = _write_run(target, source, model, colours, transform, "kmeans_centers.npy: give --palette FILE")
        c = model.config
        say(
            f"{c.n_layer} blocks of width {c.n_embd}, {c.n_head} heads, {c.n_params:,} parameters; every tensor's "
            f"checksum agrees; {what_to_expect(c)}"
        )
    elif (folder / "config.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in ("model*.safetensors", "pytorch_model*.bin")
    ):
        model, colours, maybe = from_pretrained_folder(folder)
        written = _write_run(target, source, model, colours, maybe, "preprocessor_config.json: add that file")
    else:
        checkpoint = load_checkpoint(find_checkpoint(source))
        to_pretrained_folder(target, checkpoint.model, checkpoint.palette, checkpoint.transform)
        say(f"{target}: step {checkpoint.step} for Hugging Face's from_pretrained")
        return {"folder": str(target), "step": checkpoint.step}
    say(f"wrote {written}")
    note(f"next: {command('extract', f'igpt:{target}', 'DATASET', '--out', 'features.h5')}")
    return {"run": str(target), "checkpoint": str(written)}


def _write_run(
    target: Path, source: str, model: "IGPT", palette: "Palette | None", transform: "ImageTransform | None", where: str
) -> Path:
    """Write a run folder with one checkpoint, of step 0."""
    from igpt_model.atomic import new_folder
    from igpt_model.training.checkpoint import save_checkpoint

    if palette is None or transform is None:
        raise UserError(f"{source} has no colour clusters, which are needed for images ({where}).")
    checkpoint = Path("checkpoints") / "0000000"
    with new_folder(target) as partial:
        save_checkpoint(partial / checkpoint, model, palette, transform, 0, provenance={"source": source})
    return target / checkpoint
