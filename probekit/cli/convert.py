"""`probekit convert`: a run's checkpoint to Hugging Face's format, or such a folder to a checkpoint."""

from pathlib import Path

from probekit.cli.console import say
from probekit.errors import UserError


def convert(source: str, target: Path, /) -> None:
    """Convert weights: a Hugging Face ImageGPT folder becomes a run folder, a run becomes a Hugging Face folder.

    Parameters
    ----------
    source
        A run (RUN or RUN@STEP), or a folder written by save_pretrained.
    target
        A new folder.
    """
    from igpt_model.checkpoint import load_checkpoint, save_checkpoint
    from igpt_model.convert import from_pretrained_folder, to_pretrained_folder
    from probekit.encoders.igpt import checkpoint_folder

    folder = Path(source)
    if (folder / "config.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in ("model*.safetensors", "pytorch_model*.bin")
    ):
        model, palette, transform = from_pretrained_folder(folder)
        if palette is None or transform is None:
            raise UserError(
                f"{folder} has no colour clusters (preprocessor_config.json), which pictures need: add that file."
            )
        if target.exists():
            raise UserError(f"{target} exists already: give a new folder.")
        written = save_checkpoint(
            target / "checkpoints" / "0000000", model, palette, transform, 0, provenance={"source": str(folder)}
        )
        say(f"{written} (next: probekit extract igpt:{target} DATASET --out features.h5)")
        return
    checkpoint = load_checkpoint(checkpoint_folder(source))
    to_pretrained_folder(target, checkpoint.model, checkpoint.palette, checkpoint.transform)
    say(f"{target}: step {checkpoint.step} for Hugging Face's from_pretrained")
