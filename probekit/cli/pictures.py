"""Pictures side by side in one PNG: samples, completions.

Letters: N pictures, P pixels a side.
"""

import io

import numpy as np


def picture_grid(images_NPP3: np.ndarray, columns: int | None = None, scale: int = 4) -> np.ndarray:
    """Lay pictures out row by row, one white pixel between them, each pixel `scale` wide: uint8 (H, W, 3).

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
    """A picture as a PNG file's content."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG")
    return buffer.getvalue()
