"""The two pre-training losses, in nats per predicted pixel, the seeded masks of BERT, and votes among several masks.

Letters: B images, T positions, D width, K classes; M masked positions of a batch, or masks of the same images.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from igpt_model.arguments import checked, plain_array
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.ranges import Range, check_range


def loss_of_state(model: IGPT, h_BTD: Tensor, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Return the pre-training loss of the model from its last residual state, for callers that have it.

    Autoregressive: the mean negative log-likelihood of every pixel given those before it (paper, section 2.1). BERT:
    that of the masked pixels, averaged over each image and then over images; logits are computed only for these.
    """
    if mask_BT is None:
        return F.cross_entropy(model.logits(h_BTD).flatten(0, 1), tokens_BT.long().flatten())
    # convert to int64 before masking, because PyTorch 2.9 cannot index uint16
    nll_M = F.cross_entropy(model.logits(h_BTD[mask_BT]), tokens_BT.long()[mask_BT], reduction="none")
    share_B1 = 1 / (mask_BT.sum(1, keepdim=True).clamp(min=1) * len(mask_BT))
    return (nll_M * share_B1.expand_as(mask_BT)[mask_BT]).sum()


def loss(model: IGPT, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Return the pre-training loss of the model; a BERT model needs `mask_BT`."""
    if mask_BT is None and not model.config.causal:
        raise UserError("A BERT model needs a mask; draw one with igpt_model.objectives.draw_masks.")
    return loss_of_state(model, model.last_state(tokens_BT, mask_BT), tokens_BT, mask_BT)


@checked
def draw_masks(keys_B: ArrayLike, n_positions: int, prob: float, seed: int) -> Tensor:
    """Draw one mask per row: each position is hidden independently with probability `prob`, but at least one is.

    Parameters
    ----------
    keys_B : integers (B,) or (B, K)
        Key of each row, which with the seed determines its mask: the row id, or (step, index) in training. A mask does
        not depend on the other rows or the order of calls.
    n_positions : int
    prob : float
    seed : int

    Returns
    -------
    bool tensor (B, n_positions)
        An empty row is drawn again, so the distribution is the independent one conditional on not being empty.
    """
    check_range("n_positions", n_positions, Range(1, 4096**2))
    check_range("prob", prob, Range(0, 1, above=True))
    keys = _whole(keys_B, "keys")
    keys_BK = (keys[:, None] if keys.ndim == 1 else keys).view(np.uint64)
    state_B = np.full(len(keys_BK), seed % 2**64, dtype=np.uint64)
    for key_B in keys_BK.T:
        state_B = _scramble(_scramble(state_B) ^ key_B)
    mask_BT = np.zeros((len(keys_BK), n_positions), dtype=bool)
    empty = np.arange(len(keys_BK))
    while len(empty):
        state_B = _scramble(state_B)
        bits = _scramble(state_B[empty, None] + np.arange(1, n_positions + 1, dtype=np.uint64) * _GOLDEN)
        mask_BT[empty] = (bits >> np.uint64(11)) < np.uint64(prob * 2**53)
        empty = empty[~mask_BT[empty].any(1)]
    return torch.from_numpy(mask_BT)


def _whole(values: ArrayLike, what: str) -> np.ndarray:
    array = plain_array(values, what)
    if array.ndim not in (1, 2) or (array.size and array.dtype.kind not in "iu"):
        raise UserError(f"The {what} are {array.dtype} {array.shape}; give integers, a row for each image.")
    return array.astype(np.int64)


_TIES = 3  # a stream of randomness of its own under one seed


@checked
def modal_vote(predicted_MN: ArrayLike, keys_N: ArrayLike, seed: int = 0) -> np.ndarray:
    """Return each image's most frequent prediction (N,); ties are broken at random from (seed, the image's key).

    Parameters
    ----------
    predicted_MN : integers (M, N)
        Class of every image under every mask.
    keys_N : integers (N,)
        Row ids; the result for a row does not depend on other rows or their order.
    """
    check_range("seed", seed, Range(0))
    predicted_MN, keys_N = plain_array(predicted_MN, "predictions"), _whole(keys_N, "row ids")
    if predicted_MN.ndim != 2 or predicted_MN.shape[1:] != keys_N.shape or len(predicted_MN) == 0:
        raise UserError(
            f"Predictions have shape {predicted_MN.shape} and row ids {keys_N.shape}; give (masks, images) and "
            "(images,)."
        )
    classes = np.unique(predicted_MN)
    votes_NK = (predicted_MN[:, :, None] == classes).sum(0)
    most_NK = votes_NK == votes_NK.max(1, keepdims=True)
    voted = classes[most_NK.argmax(1)].astype(np.int64)
    for row in np.flatnonzero(most_NK.sum(1) > 1):
        rng = np.random.default_rng([seed, _TIES, int(keys_N[row]) % 2**63])
        voted[row] = rng.choice(classes[most_NK[row]])
    return voted


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scramble(x: np.ndarray) -> np.ndarray:
    # one step of SplitMix64 (Steele, Lea, Flood 2014), a bijection of 64 bits that keeps distinct keys distinct
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
