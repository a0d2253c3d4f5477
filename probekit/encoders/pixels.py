"""Baselines that learn nothing: raw pixels and a colour histogram.

Letters: B images, P pixels a side.
"""

from typing import Any

import numpy as np
import torch

from probekit.encoders.compute import compute
from probekit.encoders.preparation import Preparation
from probekit.runtime.errors import UserError


def resolution_of(what: str, resolution: int | None, data: Any) -> int:
    """The side asked for, or else the shorter side of the data set's first training image.

    Raises
    ------
    UserError
        Neither a resolution nor a data set is given.
    """
    if resolution is not None:
        if int(resolution) < 1:
            raise UserError(f"A resolution of {resolution} was given for {what}; give at least 1.")
        return int(resolution)
    if data is None:
        raise UserError(f"{what} needs a resolution; write {what}:32, or give resolution=32 (--resolution 32).")
    return int(min(data.splits["train"].images(0, 1)[0].shape[:2]))


class PixelEncoder:
    """The image itself: P x P x 3 numbers in [0, 1], one layer "pixels".

    Parameters
    ----------
    resolution : int, optional
        P; the image is resized and centre-cropped to P x P (untouched where it is that size already).
    data : Dataset, optional
        Whose first training image gives P when `resolution` is None.
    interpolation : str
    device : str
    """

    def __init__(
        self, resolution: int | None = None, data: Any = None, interpolation: str = "bilinear", device: str = "cpu"
    ) -> None:
        side = resolution_of("pixels", resolution, data)
        self.prepare = Preparation((side, side), interpolation=interpolation)
        self.layers = ("pixels",)
        self.widths = (side * side * 3,)
        self._compute = compute(device)
        self.provenance: dict[str, Any] = {
            "name": "pixels",
            "kind": "pixels",
            "weights_hash": None,
            "config": {},
            "pooling": "none",
            "norm": "none",
            "resolution": side,
            "preparation": self.prepare.to_dict(),
            "palette_hash": None,
        }

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """The pixels in raster order, red, green and blue of a pixel side by side: one (B, P * P * 3)."""
        x = torch.as_tensor(np.ascontiguousarray(images_BHWC), device=self._compute.device)
        return [x.reshape(len(x), -1).float() / 255]


class HistogramEncoder:
    """Share of the pixels in each of `bins`^3 cubes of the RGB space, one layer "histogram"."""

    def __init__(
        self,
        resolution: int | None = None,
        data: Any = None,
        bins: int = 8,
        interpolation: str = "nearest",
        device: str = "cpu",
    ) -> None:
        side = resolution_of("histogram", resolution, data)
        if not 2 <= bins <= 256:
            raise UserError(f"A histogram of {bins} bins per channel was requested; give 2 to 256.")
        self.prepare = Preparation((side, side), interpolation=interpolation)
        self.bins = bins
        self.layers = ("histogram",)
        self.widths = (bins**3,)
        self._compute = compute(device)
        self.provenance: dict[str, Any] = {
            "name": "histogram",
            "kind": "histogram",
            "weights_hash": None,
            "config": {"bins": bins},
            "pooling": "count",
            "norm": "none",
            "resolution": side,
            "preparation": self.prepare.to_dict(),
            "palette_hash": None,
        }

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, bins^3); each row sums to 1; red varies slowest."""
        n_pixels = images_BHWC.shape[1] * images_BHWC.shape[2]
        level = images_BHWC.astype(np.int64) * self.bins // 256
        cube = (level[..., 0] * self.bins + level[..., 1]) * self.bins + level[..., 2]
        cube += np.arange(len(cube))[:, None, None] * self.widths[0]
        counts = np.bincount(cube.ravel(), minlength=len(cube) * self.widths[0]).reshape(len(cube), -1)
        return [torch.as_tensor(counts, device=self._compute.device).float() / n_pixels]
