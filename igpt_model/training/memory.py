"""Memory of a rank by arithmetic alone: for models too large to run here.

Letters: B images of a rank that are in flight (its micro-batch), T positions, D width, H heads, V colours, L blocks.
The counts were measured on this code (`tests/igpt_model/training/test_memory.py`); allocator waste, CUDA's
own workspace (1 GB or so) and NCCL's buffers come on top.
"""

from dataclasses import dataclass
from math import prod

import torch

from igpt_model.config import ModelConfig
from igpt_model.model import IGPT

FLOAT = 4


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank holds.

    Attributes
    ----------
    weights, gradients, optimizer : float32, Adam's two moments; with "fsdp" this rank's share of them
    gathered : with "fsdp", the whole weights and gradients of the current blocks and of the embeddings
    activations : what the forward pass keeps for the backward pass
    transient : what the backward pass makes on the way, at its largest: an estimate
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.transient


def rank_memory(
    config: ModelConfig,
    images: int,
    ranks: int = 1,
    parallel: str = "none",
    dtype: str = "float32",
    checkpoint_blocks: bool = False,
) -> RankMemory:
    """Return the memory of the rank that has the most.

    Parameters
    ----------
    images : B, images that a rank passes through the model at a time
    parallel : "none", "ddp" or "fsdp" (as `TrainConfig.parallel`)
    dtype : "float32", or "bfloat16" for autocast
    """
    weights = share_bytes(config, ranks if parallel == "fsdp" else 1)
    gathered = 0
    if parallel == "fsdp":
        d = config.n_embd
        block = 12 * d * d + 2 * d
        outer = config.n_params - config.n_layer * block
        # the current block, the prefetched next one and one gradient; embeddings and output all the time
        gathered = FLOAT * (3 * block + 2 * outer)
    return RankMemory(
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        gathered=gathered,
        activations=activation_bytes(config, images, dtype, checkpoint_blocks),
        transient=transient_bytes(config, images, dtype, checkpoint_blocks),
    )


def share_bytes(config: ModelConfig, ranks: int) -> int:
    """Return the bytes of the largest share of the weights: each is cut by rows, ceil(rows / ranks) to a rank."""
    with torch.device("meta"):
        parameters = list(IGPT(config).parameters())
    return FLOAT * sum(-(-len(p) // ranks) * prod(p.shape[1:]) for p in parameters)


def block_bytes(config: ModelConfig, images: int, dtype: str = "float32") -> int:
    """Return what one block keeps for its backward pass.

    float32: the block's input, both norms' outputs before and after their gains, the state between, q, k, v, the mixed
    values and the MLP's two hidden states (4 D each): 18 numbers of B T D; the norms' scales and the attention's
    logarithms of sums: 2 + H of B T; the MLP's matrices with the activation's slope in them: 8 D^2. Under autocast,
    what enters a matrix product is kept in two bytes (14 of the 18), and so is every matrix (12 D^2).
    """
    b, t, d = images, config.n_positions, config.n_embd
    scales = FLOAT * b * t * (2 + config.n_head)
    if dtype == "bfloat16":
        return (4 * FLOAT + 14 * 2) * b * t * d + scales + 2 * 12 * d * d
    return 18 * FLOAT * b * t * d + scales + FLOAT * 8 * d * d


def activation_bytes(config: ModelConfig, images: int, dtype: str = "float32", checkpoint_blocks: bool = False) -> int:
    """Return what the forward pass keeps: every block's, or its input alone if blocks are computed again; the output.

    BERT predicts fewer positions than counted here.
    """
    b, t, d, v = images, config.n_positions, config.n_embd, config.vocab_size
    half = dtype == "bfloat16"
    # last state, normalised and as it enters the output matrix; log-probabilities; targets
    output = (2 * FLOAT + (2 if half else FLOAT)) * b * t * d + FLOAT * b * t * (1 + v) + 8 * b * t
    output += 2 * v * d if half else 0
    each = FLOAT * b * t * d if checkpoint_blocks else block_bytes(config, images, dtype)
    return config.n_layer * each + output


def transient_bytes(config: ModelConfig, images: int, dtype: str = "float32", checkpoint_blocks: bool = False) -> int:
    """Estimate what comes on top while the backward pass runs: at the output, or in a block, whichever is more."""
    b, t, d, v = images, config.n_positions, config.n_embd, config.vocab_size
    output = 2 * FLOAT * b * t * v  # logits and their gradient
    # gradients of the MLP's hidden states and of the residual stream
    block = (2 if dtype == "bfloat16" else FLOAT) * 8 * b * t * d + 2 * FLOAT * b * t * d
    return max(output, block + (block_bytes(config, images, dtype) if checkpoint_blocks else 0))


def largest_micro_batch(config: ModelConfig, memory: int, batch_size: int, ranks: int = 1, **how: object) -> int:
    """Return the most images at a time that fit in `memory` bytes: a divisor of a rank's share of the batch; 0: none.

    `how` is `parallel`, `dtype` and `checkpoint_blocks` of `rank_memory`.
    """
    share = batch_size // ranks
    fits = [
        images
        for images in range(1, share + 1)
        if share % images == 0 and rank_memory(config, images, ranks, **how).total <= memory  # type: ignore[arg-type]
    ]
    return max(fits, default=0)
