"""`probekit sample`: pictures drawn from a trained iGPT, in one PNG."""

from pathlib import Path

from probekit.cli.console import say


def sample(
    run: str,
    /,
    *,
    out: Path,
    n: int = 16,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    scale: int = 4,
) -> None:
    """Draw pictures from an autoregressive run and write them side by side.

    Parameters
    ----------
    run
        A run folder, RUN@STEP, or a checkpoint folder.
    out
        The PNG file.
    n
        How many pictures.
    temperature
        1 draws from the model as it is, 0 takes the likeliest colour every time.
    top_k
        Draw among the k likeliest colours only.
    seed
        The same seed gives the same pictures.
    scale
        Side of a pixel in the PNG.
    """
    import io

    import numpy as np
    from PIL import Image

    from igpt_model import atomic
    from igpt_model.checkpoint import load_checkpoint
    from igpt_model.sample import sample as draw
    from probekit.encoders.igpt import checkpoint_folder

    checkpoint = load_checkpoint(checkpoint_folder(run))
    tokens = draw(checkpoint.model, n, temperature, top_k, seed)
    images_NPP3 = checkpoint.palette.decode(tokens.numpy())
    columns = int(np.ceil(np.sqrt(n)))
    rows, side = -(-n // columns), images_NPP3.shape[1]
    # one pixel of white between the pictures
    grid = np.full((rows * (side + 1) - 1, columns * (side + 1) - 1, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images_NPP3):
        top, left = (index // columns) * (side + 1), (index % columns) * (side + 1)
        grid[top : top + side, left : left + side] = image
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    atomic.write_bytes(out, buffer.getvalue())
    say(f"{n} pictures of step {checkpoint.step}: {out}")
