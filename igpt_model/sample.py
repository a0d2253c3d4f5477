"""Drawing images pixel by pixel, with the keys and values of earlier pixels kept.

Letters: N images, T positions, H heads, E head width, D width, V palette colours.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .errors import UserError
from .model import IGPT


class Cache:
    """Keys and values of every block for the positions computed so far: (L, N, H, T, E) each, filled in order."""

    def __init__(self, model: IGPT, n: int, n_positions: int) -> None:
        weight, config = model.wte.weight, model.config
        shape = (config.n_layer, n, config.n_head, n_positions, config.n_embd // config.n_head)
        self.keys, self.values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        self.filled = 0


def advance(model: IGPT, inputs_NSD: Tensor, cache: Cache) -> Tensor:
    """Run the next S positions through the model and keep their keys and values; return the last one's logits (N, V).

    Only an empty cache takes more than one position at a time.
    """
    start, end = cache.filled, cache.filled + inputs_NSD.shape[1]
    if start > 0 and end > start + 1:
        raise ValueError("only an empty cache takes several positions at a time")
    h_NSD = inputs_NSD
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.query_key_value(block.ln_1(h_NSD))
        cache.keys[i, :, :, start:end], cache.values[i, :, :, start:end] = k, v
        past_k, past_v = cache.keys[i, :, :, :end], cache.values[i, :, :, :end]
        # a single new position may look at all positions so far; the first ones look back only
        mixed = F.scaled_dot_product_attention(q, past_k, past_v, is_causal=start == 0)
        h_NSD = h_NSD + block.attn.project(mixed)
        h_NSD = h_NSD + block.mlp(block.ln_2(h_NSD))
    cache.filled = end
    return model.logits(h_NSD[:, -1])


@torch.no_grad()
def sample(
    model: IGPT,
    n: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    prefix_tokens: Tensor | np.ndarray | None = None,
) -> Tensor:
    """Draw `n` images from an autoregressive model, or complete given upper parts.

    Parameters
    ----------
    model : IGPT
    n : int
    temperature : float
        Divides the logits; 0 takes the likeliest colour every time.
    top_k : int, optional
        Draw among the k likeliest colours only (all of those equal to the k-th).
    seed : int
        The same seed, model and `n` give the same images on the same device.
    prefix_tokens : integers (P,) or (n, P), optional
        The first P pixels, in raster order: one for all images, or one an image.

    Returns
    -------
    int64 tensor (n, T)
    """
    config, device = model.config, model.wte.weight.device
    if not config.causal:
        raise UserError("A BERT model cannot draw images pixel by pixel: sample from an autoregressive model.")
    if n < 1 or not temperature >= 0 or (top_k is not None and top_k < 1):
        raise UserError(
            f"n = {n}, temperature = {temperature}, top_k = {top_k}: give n >= 1, temperature >= 0, top_k >= 1."
        )
    tokens_NT = torch.zeros(n, config.n_positions, dtype=torch.long, device=device)
    n_given = 0
    if prefix_tokens is not None:
        prefix = torch.as_tensor(prefix_tokens, device=device).long()
        n_given = prefix.shape[-1]
        if n_given > config.n_positions or prefix.shape not in {(n_given,), (n, n_given)}:
            raise UserError(
                f"A prefix of shape {tuple(prefix.shape)} was given for {n} images of {config.n_positions} pixels: "
                "give (P,) or (n, P) with P at most the image's pixels."
            )
        if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < config.vocab_size:
            raise UserError(f"The prefix holds colours outside 0 to {config.vocab_size - 1}.")
        tokens_NT[:, :n_given] = prefix
    generator = torch.Generator(device=device).manual_seed(seed)
    cache = Cache(model, n, config.n_positions)
    # `embed` puts the start vector in front and drops the last pixel it is given, so one more than the prefix goes in
    inputs_NSD = model.embed(tokens_NT[:, : n_given + 1])
    for t in range(n_given, config.n_positions):
        tokens_NT[:, t] = _draw(advance(model, inputs_NSD, cache), temperature, top_k, generator)
        if t + 1 < config.n_positions:
            inputs_NSD = (model.wte(tokens_NT[:, t]) + model.wpe.weight[t + 1])[:, None]
    return tokens_NT


def _draw(logits_NV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_NV.argmax(-1)
    if top_k is not None and top_k < logits_NV.shape[-1]:
        kth_N1 = logits_NV.topk(top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    return torch.multinomial((logits_NV / temperature).softmax(-1), 1, generator=generator)[:, 0]
