"""Definition of "layer k" and its pooled representation.

Letters: B images, T positions, D width.

Layer k (0 the embedding, L the last block) is the residual stream after k blocks, passed through the norm that reads it
next (`ln_1` of block k; `ln_f` after the last block), averaged over positions: L + 1 candidates (paper, sections 2.2 to
2.4 and the authors' blog). `norm=False` leaves the norm out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from igpt_model import inference
from igpt_model.arguments import checked, plain_array
from igpt_model.config import ModelConfig
from igpt_model.devices import is_plain, send
from igpt_model.errors import UserError
from igpt_model.model import IGPT, NORM_EPS, check_mask


def layer_names(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the L + 1 layers, shallow to deep: "00", "01", ..."""
    return tuple(f"{k:02d}" for k in range(config.n_layer + 1))


def pool(model: IGPT, k: int, h_BTD: Tensor, norm: bool = True) -> Tensor:
    """Return layer k's feature (B, D), in float32, of its raw residual state `h_BTD`; differentiable.

    The mean over positions of h / rms(h) * g is a weighted sum of the rows of h, which avoids a normalised copy of h.
    """
    h_BTD = h_BTD.float()
    if not norm:
        return h_BTD.mean(1)
    g = (model.blocks[k].ln_1 if k < model.L else model.ln_f).g.float()
    n_positions, width = h_BTD.shape[1:]
    with torch.autocast(h_BTD.device.type, enabled=False):  # autocast would compute the weighted sum in bfloat16
        mean_square_BT = torch.linalg.vector_norm(h_BTD, dim=-1).square() / width
        weight_BT = torch.rsqrt(mean_square_BT + NORM_EPS) / n_positions
        return torch.bmm(weight_BT[:, None], h_BTD)[:, 0] * g


@torch.no_grad()
@checked
def encode(
    model: IGPT,
    tokens_BT: Tensor | np.ndarray,
    norm: bool = True,
    mask_BT: Tensor | np.ndarray | None = None,
    layers: Sequence[int] | None = None,
) -> list[Tensor]:
    """Return the pooled representation of images at every depth: L + 1 tensors (B, D), float32, on the model's device.

    Parameters
    ----------
    model : IGPT
        There is no dropout, so training and evaluation mode are equivalent.
    tokens_BT : integers (B, T)
        Palette indices in raster order; for an autoregressive model the start token is put in front and the last pixel
        dropped, as in training.
    norm : bool
        Apply the norm that reads the state next. False uses the raw residual stream.
    mask_BT : bool (B, T), optional
        BERT only: hidden positions; the paper probes BERT on masked inputs (`objectives.draw_masks`).
    layers : indices k, optional
        Only these, shallow to deep; nothing deeper than the last of them is computed.
    """
    device = model.wte.weight.device
    tokens_BT = checked_tokens(tokens_BT, model.config.vocab_size).to(device)
    if mask_BT is not None:
        mask_BT = _tensor(mask_BT, "the mask").to(device)
        check_mask(mask_BT, tokens_BT)
    wanted = range(model.L + 1) if layers is None else sorted(layers)
    if not wanted or not 0 <= wanted[0] <= wanted[-1] <= model.L:
        raise UserError(f"layers are {list(wanted)}, but the model has layers 0 to {model.L}; give at least one.")
    if not inference.fits(model):
        # `range` comes first in zip, so that no deeper block is run
        states = zip(range(wanted[-1] + 1), model.hidden_states(tokens_BT, mask_BT), strict=False)
        return [pool(model, k, h_BTD, norm) for k, h_BTD in states if k in wanted]
    n_images, n_positions = tokens_BT.shape
    pooled = {k: torch.empty(n_images, model.config.n_embd) for k in wanted}

    def fill(rows: slice, work: inference.Workspace) -> None:
        mask = None if mask_BT is None else mask_BT[rows]
        pairs = inference.states_in_place(model, tokens_BT[rows], mask, work)
        for k, (h_MTD, n_MTD) in zip(range(wanted[-1] + 1), pairs, strict=False):
            if k in pooled:
                torch.mean(n_MTD if norm else h_MTD, 1, out=pooled[k][rows])

    # on a CPU, process a few images at a time in buffers that stay in the cache
    inference.for_each_piece(model, n_images, n_positions, fill)
    return list(pooled.values())


def _tensor(values: ArrayLike | Tensor, what: str) -> Tensor:
    if not is_plain(values):
        values = send(plain_array(values, what), torch.device("cpu"))
    return values


def checked_tokens(values: ArrayLike | Tensor, n_colours: int) -> Tensor:
    """Return tokens (B, T) as a tensor; `UserError` if they are not indices of a palette of `n_colours`."""
    tokens_BT = _tensor(values, "tokens")
    whole = not (tokens_BT.is_floating_point() or tokens_BT.dtype == torch.bool)
    if not whole or tokens_BT.ndim != 2 or not tokens_BT.shape[1]:
        raise UserError(
            f"Tokens are {tokens_BT.dtype} {tuple(tokens_BT.shape)}; expected integers of shape (images, pixels)."
        )
    if tokens_BT.device.type == "cpu" and len(tokens_BT):  # on a GPU this would synchronise
        low, high = (int(end) for end in tokens_BT.long().aminmax())
        if not 0 <= low <= high < n_colours:
            raise UserError(
                f"Tokens run from {low} to {high}, but the model has {n_colours} colours, 0 to {n_colours - 1}."
            )
    return tokens_BT
