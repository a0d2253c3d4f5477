"""Majority votes over several masks of the same images (paper, appendix A, for BERT models).

Letters: M masks, N images, K classes.
"""

import numpy as np
from numpy.typing import ArrayLike

from igpt_model.errors import UserError

_TIES = 3  # a stream of randomness of its own under one seed


def modal_vote(predicted_MN: ArrayLike, keys_N: ArrayLike, seed: int = 0) -> np.ndarray:
    """Return each image's most frequent prediction (N,); ties are broken at random from (seed, the image's key).

    Parameters
    ----------
    predicted_MN : integers (M, N)
        Class of every image under every mask.
    keys_N : integers (N,)
        Row ids; the result for a row does not depend on other rows or their order.
    """
    predicted_MN, keys_N = np.asarray(predicted_MN), np.asarray(keys_N, dtype=np.int64)
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
