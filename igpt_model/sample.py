"""Sample images pixel by pixel, with a cache of keys and values.

Letters: N images, T positions, H heads, E head width, D width, V palette colours.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from igpt_model.arguments import checked, plain_array
from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.ranges import NOT_NEGATIVE, Range, check_at_least, check_range

CACHE_BYTES = 2 << 30  # cache size that is assumed to fit in any machine's memory, see `images_at_once`

_DRAWS = 5  # a stream of randomness of its own under one seed


class Cache:
    """Keys and values of every block for the positions computed so far: (L, N, H, T, E) each, filled in order."""

    def __init__(self, model: IGPT, n: int, n_positions: int) -> None:
        weight, config = model.wte.weight, model.config
        shape = (config.n_layer, n, config.n_head, n_positions, config.n_embd // config.n_head)
        self.keys, self.values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        self.filled = 0


def advance(model: IGPT, inputs_NSD: Tensor, cache: Cache) -> Tensor:
    """Compute the next S positions and cache their keys and values; return the logits (N, V) of the last one.

    More than one position at a time requires an empty cache.
    """
    start, end = cache.filled, cache.filled + inputs_NSD.shape[1]
    if start > 0 and end > start + 1:
        raise ValueError("only an empty cache takes several positions at a time")
    h_NSD = inputs_NSD
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.query_key_value(block.ln_1(h_NSD))
        cache.keys[i, :, :, start:end], cache.values[i, :, :, start:end] = k, v
        past_k, past_v = cache.keys[i, :, :, :end], cache.values[i, :, :, :end]
        # a single new position attends to all positions so far; the first call needs the causal mask
        mixed = F.scaled_dot_product_attention(q, past_k, past_v, is_causal=start == 0)
        h_NSD = h_NSD + block.attn.project(mixed)
        h_NSD = h_NSD + block.mlp(block.ln_2(h_NSD))
    cache.filled = end
    return model.logits(h_NSD[:, -1])


def images_at_once(config: ModelConfig) -> int:
    """Return how many images to sample together: as many as have a cache of 2 GiB, or of the weights' size if larger.

    Each pixel reads all weights once and the cache of every image. Once both are equal in size, more images gain
    little: if memory bandwidth is the limit, at most a factor of two.
    """
    image = 4 * 2 * config.n_layer * config.n_positions * config.n_embd
    return max(1, max(CACHE_BYTES, 4 * config.n_params) // image)


@torch.no_grad()
@checked
def sample(
    model: IGPT,
    n: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    prefix_tokens: ArrayLike | Tensor | None = None,
    at_once: int | None = None,
) -> Tensor:
    """Sample `n` images from an autoregressive model, or complete given upper parts.

    Parameters
    ----------
    model : IGPT
    n : int
    temperature : float
        Divides the logits; 0 always chooses the most likely colour.
    top_k : int, optional
        Sample only among the k most likely colours (and ties with the k-th).
    seed : int
        Non-negative. Image i depends only on the model, its prefix, the seed and i, up to rounding of the logits, which
        can change a pixel (and then later ones) if its two best draws are nearly equal.
    prefix_tokens : integers (P,) or (n, P), optional
        The first P pixels, in raster order: the same for all images, or one row per image.
    at_once : int, optional
        Images sampled together, which limits memory; by default `images_at_once`.

    Returns
    -------
    int64 tensor (n, T)
    """
    config, device = model.config, model.wte.weight.device
    if not config.causal:
        raise UserError("A BERT model cannot sample images pixel by pixel; use an autoregressive model.")
    check_at_least(n=(n, 1), top_k=(top_k, 1), at_once=(at_once, 1))
    check_range("temperature", temperature, NOT_NEGATIVE)
    check_range("seed", seed, Range(0))
    tokens_NT = torch.zeros(n, config.n_positions, dtype=torch.long, device=device)
    n_given = 0
    if prefix_tokens is not None:
        prefix = plain_array(prefix_tokens, "the prefix")
        n_given = prefix.shape[-1] if prefix.ndim else 0
        if n_given > config.n_positions or prefix.shape not in {(n_given,), (n, n_given)}:
            raise UserError(
                f"The prefix has shape {prefix.shape} for {n} images of {config.n_positions} pixels; "
                "give (P,) or (n, P) with P at most the image's pixels."
            )
        valid = prefix.dtype.kind in "iu" and 0 <= prefix.min(initial=0) <= prefix.max(initial=0) < config.vocab_size
        if prefix.size and not valid:
            raise UserError(f"The prefix contains invalid colours; give integers from 0 to {config.vocab_size - 1}.")
        tokens_NT[:, :n_given] = torch.from_numpy(prefix.astype(np.int64))
    size = at_once or images_at_once(config)
    for start in range(0, n, size):
        part_NT = tokens_NT[start : start + size]
        # each image has a separate random stream
        streams = [np.random.default_rng([seed, _DRAWS, start + i]) for i in range(len(part_NT))]
        cache = Cache(model, *part_NT.shape)
        # `embed` prepends the start vector and drops the last pixel, so pass one pixel more than the prefix
        inputs_NSD = model.embed(part_NT[:, : n_given + 1])
        for t in range(n_given, config.n_positions):
            logits_NV = advance(model, inputs_NSD, cache)
            part_NT[:, t] = _draw(logits_NV, temperature, top_k, streams)
            if t + 1 < config.n_positions:
                inputs_NSD = (model.wte(part_NT[:, t]) + model.wpe.weight[t + 1])[:, None]
            elif logits_NV.isnan().any():  # the last pixel sees all others, so it is NaN if any was
                raise UserError("The model's logits are NaN, so its weights are damaged; use another checkpoint.")
    return tokens_NT


def _draw(logits_NV: Tensor, temperature: float, top_k: int | None, streams: list[np.random.Generator]) -> Tensor:
    """Sample one colour per image by the Gumbel-max trick.

    Rounding of the logits changes a draw only if the two best colours are close; inverting the cumulative
    distribution would be sensitive at the boundary of every colour.
    """
    if temperature == 0:
        return logits_NV.argmax(-1)
    if top_k is not None and top_k < logits_NV.shape[-1]:
        kth_N1 = logits_NV.topk(top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    noise_NV = torch.from_numpy(np.stack([stream.gumbel(size=logits_NV.shape[-1]) for stream in streams]))
    return (logits_NV / temperature + noise_NV.to(logits_NV)).argmax(-1)
