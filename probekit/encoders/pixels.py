"""Baselines without learning: raw pixels and a colour histogram.

Letters: B images, P pixels a side.
"""

from typing import Any

import numpy as np
import torch

from igpt_model.arguments import checked
from probekit.encoders.encoder import compute, encoder_repr
from probekit.encoders.preparation import Preparation, first_images, whole
from probekit.runtime.errors import UserError


def resolution_of(what: str, resolution: int | str | None, data: Any) -> int:
    """`resolution`, or else the shorter side of the data set's first training image."""
    if resolution is not None:
        if (side := whole(resolution)) < 1:
            raise UserError(f"A resolution of {resolution} was given for {what}; give at least 1.")
        return side
    if data is None:
        raise UserError(f"{what} needs a resolution; write {what}:32, or give resolution=32 (--resolution 32).")
    return int(min(first_images(data, 1, what)[0].shape[:2]))


class _Baseline:
    """A single layer, named `kind`, of images of P x P."""

    kind, config, pooling = "", dict[str, Any](), "none"

    __repr__ = encoder_repr

    def __init__(self, width: int, side: int, interpolation: str, device: str | torch.device) -> None:
        self.prepare = Preparation((side, side), interpolation=interpolation)
        self.layers = (self.kind,)
        self.widths = (width,)
        self._compute = compute(device)
        self.provenance: dict[str, Any] = {
            "name": self.kind,
            "kind": self.kind,
            "weights_hash": None,
            "config": self.config,
            "pooling": self.pooling,
            "norm": "none",
            "resolution": side,
            "preparation": self.prepare.to_dict(),
            "palette_hash": None,
        }


class PixelEncoder(_Baseline):
    """Raw pixels: P x P x 3 numbers in [0, 1] as a single layer "pixels"; images of other sizes are resized and
    centre-cropped. P is `resolution`, or that of the first training image of `data`."""

    kind = "pixels"

    @checked
    def __init__(
        self,
        resolution: int | str | None = None,
        data: Any = None,
        interpolation: str = "bilinear",
        device: str | torch.device = "cpu",
    ) -> None:
        side = resolution_of("pixels", resolution, data)
        super().__init__(side * side * 3, side, interpolation, device)

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, P * P * 3): the pixels in raster order, with the channels of a pixel adjacent."""
        x = torch.as_tensor(np.ascontiguousarray(images_BHWC), device=self._compute.device)
        return [x.reshape(len(x), -1).float() / 255]


class HistogramEncoder(_Baseline):
    """Colour histogram: fraction of pixels in each of `bins`^3 cubes of RGB space, as a single layer "histogram"."""

    kind, pooling = "histogram", "count"

    @checked
    def __init__(
        self,
        resolution: int | str | None = None,
        data: Any = None,
        bins: int = 8,
        interpolation: str = "nearest",
        device: str | torch.device = "cpu",
    ) -> None:
        side = resolution_of("histogram", resolution, data)
        if not 2 <= bins <= 256:
            raise UserError(f"A histogram of {bins} bins per channel was requested; give 2 to 256.")
        self.bins, self.config = bins, {"bins": bins}
        super().__init__(bins**3, side, interpolation, device)

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, bins^3); each row sums to 1; red varies slowest."""
        n_pixels = images_BHWC.shape[1] * images_BHWC.shape[2]
        level = images_BHWC.astype(np.int64) * self.bins // 256
        cube = (level[..., 0] * self.bins + level[..., 1]) * self.bins + level[..., 2]
        cube += np.arange(len(cube))[:, None, None] * self.widths[0]
        counts = np.bincount(cube.ravel(), minlength=len(cube) * self.widths[0]).reshape(len(cube), -1)
        return [torch.as_tensor(counts, device=self._compute.device).float() / n_pixels]
