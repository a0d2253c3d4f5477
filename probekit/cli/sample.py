"""`probekit sample`: images sampled from a trained iGPT, in one PNG file."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.images import ImageTransform
from probekit.cli.console import say
from probekit.cli.plot import check_ending
from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError


def sample(
    run: str,
    *,
    out: Path,
    n: int = 16,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    scale: int = 4,
    complete: str | None = None,
    each: int = 4,
    keep: float = 0.5,
    root: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draw images from an autoregressive run, or complete given ones, and write them side by side.

    Parameters
    ----------
    run
        A run folder, RUN@STEP, or a checkpoint folder.
    out
        The PNG file; one named samples*.png in a run or results folder is shown by its report.
    n
        Number of images; with --complete, how many are completed. They are drawn in batches that fit in memory.
    temperature
        Sampling temperature: 1 samples from the model's distribution, 0 takes the most likely colour.
    top_k
        Sample only from the k most likely colours.
    seed
        Random seed; image i does not depend on the number of images.
    scale
        Enlargement: side of one image pixel in the PNG.
    complete
        A data set; the lower part of its validation images is completed by the model.
    each
        Completions per image.
    keep
        Fraction of each image, from the top, that is given.
    root
        Folder of that data set, if it is not embedded.
    device
        cpu, cuda, cuda:1.
    """
    check_ending(out, ("png",))
    from igpt_model import atomic
    from igpt_model.devices import find_device
    from igpt_model.sample import sample as draw
    from igpt_model.training.checkpoint import load_checkpoint
    from probekit.encoders.igpt import find_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(run), find_device(device))
    if complete is None:
        tokens = draw(checkpoint.model, n, temperature, top_k, seed)
        grid = picture_grid(checkpoint.palette.decode(tokens.cpu().numpy()), scale=scale)
        atomic.write_bytes(out, png_bytes(grid))
        say(f"{out}: {n} images of step {checkpoint.step}")
        return {"image": str(out), "n": n, "step": checkpoint.step}
    side = checkpoint.transform.resolution
    given = round(keep * side) * side
    if not 0 < given < side * side:
        raise UserError(
            f"keep is {keep}, which leaves no row of {side} pixels to give, or none to complete; choose another share."
        )
    plain = ImageTransform(side, checkpoint.transform.resize)
    pictures = load_dataset(complete, root=root).splits["val"].limit(n)
    tokens_NT = checkpoint.palette.encode(np.stack([plain(image) for image in pictures.images(0, len(pictures))]))
    prefixes = np.repeat(tokens_NT[:, :given].astype(np.int64), each, 0)
    drawn = draw(checkpoint.model, len(prefixes), temperature, top_k, seed, prefixes).cpu().numpy()
    original = checkpoint.palette.decode(tokens_NT)
    hidden = original.copy()
    hidden.reshape(len(hidden), side * side, 3)[:, given:] = 127
    completed = checkpoint.palette.decode(drawn).reshape(len(original), each, side, side, 3)
    rows = np.concatenate([hidden[:, None], completed, original[:, None]], 1)
    atomic.write_bytes(out, png_bytes(picture_grid(rows.reshape(-1, side, side, 3), each + 2, scale)))
    say(f"{out}: {len(original)} images of {complete}; left to right the given part, {each} completions, the original")
    return {"image": str(out), "n": len(original), "step": checkpoint.step}


def picture_grid(images_NPP3: np.ndarray, columns: int | None = None, scale: int = 4) -> np.ndarray:
    """Arrange images row by row, one white pixel apart, each pixel enlarged to `scale`: uint8 (H, W, 3).

    Parameters
    ----------
    columns : images per row; by default about a square.
    """
    n, side = images_NPP3.shape[:2]
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    grid = np.full((rows * (side + 1) - 1, columns * (side + 1) - 1, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images_NPP3):
        top, left = (index // columns) * (side + 1), (index % columns) * (side + 1)
        grid[top : top + side, left : left + side] = image
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


def png_bytes(image_HW3: np.ndarray) -> bytes:
    """An image encoded as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG")
    return buffer.getvalue()
