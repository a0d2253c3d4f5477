"""Every position's features instead of their mean: what an attentive probe reads.

`tokens:igpt:RUN` makes feature files whose rows hold T positions of D features one after the other, T * D columns, of
the layers that were asked for. B images, T positions, D features.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from igpt_model.features import pool
from probekit.encoders.encoder import encoder_repr
from probekit.encoders.igpt import IGPTEncoder, load_random, load_run
from probekit.runtime.errors import UserError


class TokenEncoder:
    """An iGPT encoder without the mean over positions; each position goes through the norm that reads it next."""

    __repr__ = encoder_repr

    def __init__(self, encoder: IGPTEncoder) -> None:
        self._pooled = encoder
        self.n_tokens = encoder.model.config.n_positions
        self.prepare = encoder.prepare
        self.layers = encoder.layers
        self.widths = tuple(self.n_tokens * width for width in encoder.widths)
        self.provenance: dict[str, Any] = encoder.provenance | {
            "pooling": "none: all positions, one after the other",
            "tokens": self.n_tokens,
            "depths": list(encoder._chosen),
        }

    @torch.no_grad()
    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, T * D) float32 tensor a layer."""
        own = self._pooled
        tokens_BT, mask_BT = own.inputs(images_BHWC, row_ids_B)
        found = []
        with own._compute.context():
            states = zip(range(own._chosen[-1] + 1), own.model.hidden_states(tokens_BT, mask_BT), strict=False)
            for k, h_BTD in states:
                if k in own._chosen:
                    # each position as a picture of one: its mean is itself, so "layer k" stays where it is defined
                    one_at_a_time = h_BTD.reshape(-1, 1, h_BTD.shape[2])
                    found.append(pool(own.model, k, one_at_a_time, own.norm).reshape(len(h_BTD), -1).float())
        return found


def load_tokens(spec: str, **options: Any) -> TokenEncoder:
    """`tokens:igpt:RUN[@STEP]`, `tokens:random:RUN` or `tokens:random:PRESET`; options as those take them."""
    scheme, _, rest = spec.partition(":")
    loaders: dict[str, Callable[..., IGPTEncoder]] = {"igpt": load_run, "random": load_random}
    if scheme not in loaders or not rest or rest.startswith(("hf:", "timm:")):
        raise UserError(f"tokens:{spec} is not known; write tokens:igpt:RUN or tokens:random:RUN.")
    return TokenEncoder(loaders[scheme](rest, **options))
