"""The iGPT transformer, numerically equivalent to the released TensorFlow code.

Letters: B images, T positions, D width, H heads, E = D / H head width, V palette colours.

Pre-norm blocks: a = h + attn(ln_1(h)); h' = a + mlp(ln_2(a)); then ln_f and an untied output matrix. The norm is a
root-mean-square norm with a gain and nothing else; no linear layer has a bias; the activation is x * sigmoid(1.702 x).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from igpt_model.arguments import checked
from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.ranges import SEED, check_range

NORM_EPS = 1e-5
GELU_SLOPE = 1.702


def check_mask(mask_BT: Any, tokens_BT: Tensor) -> None:
    """Raise for a mask that is not a bool tensor of the tokens' shape."""
    if not isinstance(mask_BT, Tensor) or mask_BT.dtype != torch.bool or mask_BT.shape != tokens_BT.shape:
        given = f"{getattr(mask_BT, 'dtype', type(mask_BT).__name__)} {tuple(getattr(mask_BT, 'shape', ()))}"
        raise UserError(
            f"The mask is {given}; expected a bool tensor {tuple(tokens_BT.shape)}, True where a pixel is hidden."
        )


class Linear(nn.Linear):
    """A linear layer without PyTorch's initialisation, because `IGPT` draws every weight from its seed."""

    def reset_parameters(self) -> None:
        """Set biases to zero without using the global random state."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """An embedding without PyTorch's initialisation."""

    def reset_parameters(self) -> None:
        """Do nothing, and do not use the global random state."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * g, as `norm` in the released code, without subtracting a mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, h_BTD: Tensor) -> Tensor:
        return F.rms_norm(h_BTD, self.g.shape, self.g, NORM_EPS)


class Attention(nn.Module):
    """Dense multi-head attention, logits scaled by E^-0.5; queries, keys and values in one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.causal = config.n_head, config.causal
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def query_key_value(self, n_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (B, H, T, E)."""
        q, k, v = self.c_attn(n_BTD).unflatten(-1, (3, self.n_head, -1)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def project(self, mixed_BHTE: Tensor) -> Tensor:
        """Concatenate the heads and apply the output matrix: (B, T, D)."""
        return self.c_proj(mixed_BHTE.transpose(1, 2).flatten(2))

    def forward(self, n_BTD: Tensor) -> Tensor:
        return self.project(F.scaled_dot_product_attention(*self.query_key_value(n_BTD), is_causal=self.causal))


class MLP(nn.Module):
    """D -> 4 D -> D with x * sigmoid(1.702 x) between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, n_BTD: Tensor) -> Tensor:
        # x sigmoid(s x) = silu(s x) / s. With s moved into the two matrices the activation is one fused kernel that
        # stores one (B, T, 4D) tensor for the backward pass instead of three. With few rows the matrices are larger.
        few_rows = n_BTD.shape[:-1].numel() < n_BTD.shape[-1]
        if few_rows:
            return self.c_proj(F.silu(self.c_fc(n_BTD) * GELU_SLOPE) / GELU_SLOPE)
        b_fc = self.c_fc.bias
        a = F.linear(n_BTD, self.c_fc.weight * GELU_SLOPE, None if b_fc is None else b_fc * GELU_SLOPE)
        return F.linear(F.silu(a), self.c_proj.weight / GELU_SLOPE, self.c_proj.bias)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BTD = h_BTD + self.attn(self.ln_1(h_BTD))
        return h_BTD + self.mlp(self.ln_2(h_BTD))


class IGPT(nn.Module):
    """iGPT (Chen et al. 2020, section 2.2), with weights initialised as in the released code, from `seed` only.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Seed of the initial weights, from 0 to 2**32 - 1. Under `torch.device("meta")` no weights are drawn.

    Attributes
    ----------
    config : ModelConfig
    checkpoint_blocks : bool
        Recompute each block in the backward pass instead of storing its activations.
    """

    @checked
    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        check_range("seed", seed, SEED)
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        if config.causal:
            self.sos = nn.Parameter(torch.empty(config.n_embd))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        if not self.wte.weight.is_meta:
            self._draw_weights(torch.Generator().manual_seed(seed))

    @classmethod
    @checked
    def from_state(cls, config: ModelConfig, state: Mapping[str, Tensor], source: str = "The state") -> "IGPT":
        """Build a model from these weights, copied to float32, without initialising random ones."""
        with torch.device("meta"):
            model = cls(config)
        expected = {name: value.shape for name, value in model.state_dict().items()}
        wrong = sorted(set(expected) ^ set(state)) or [name for name in expected if expected[name] != state[name].shape]
        if wrong:
            raise UserError(
                f"{source} does not match {config}; missing, unknown or of the wrong shape: {', '.join(wrong[:6])}."
            )
        copied = {
            name: torch.empty(value.shape, dtype=torch.float32, device=value.device).copy_(value)
            for name, value in state.items()
        }
        if bad := [name for name, value in copied.items() if not (value.is_meta or torch.isfinite(value).all())]:
            raise UserError(f"{source} has weights that are not finite in float32 in {', '.join(bad[:6])}.")
        model.load_state_dict(copied, assign=True)
        return model

    @property
    def L(self) -> int:
        """Number of blocks."""
        return self.config.n_layer

    @property
    def blocks(self) -> list[Block]:
        """The L blocks, shallow to deep."""
        return list(self.h)  # type: ignore[arg-type]  # a ModuleList does not know its modules' type

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        d = self.config.n_embd

        def draw(weight: Tensor, deviation: float) -> None:
            weight.copy_(torch.empty(weight.shape).normal_(0, deviation, generator=generator))

        draw(self.wte.weight, 0.02)
        draw(self.wpe.weight, 0.01)
        if self.config.causal:
            draw(self.sos, 0.02)
        for block in self.blocks:
            draw(block.attn.c_attn.weight, 1 / math.sqrt(d))
            draw(block.attn.c_proj.weight, 1 / math.sqrt(d * self.L))
            draw(block.mlp.c_fc.weight, 0.02)
            draw(block.mlp.c_proj.weight, 0.02)
        nn.init.zeros_(self.head.weight)

    def embed(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return the input of the first block, (B, T, D).

        Autoregressive: the start vector, then all pixels but the last. BERT: every pixel, with the token embedding (not
        the position embedding) of masked pixels set to zero.
        """
        if not isinstance(tokens_BT, Tensor) or tokens_BT.ndim != 2 or tokens_BT.layout != torch.strided:
            raise UserError("tokens_BT is not a dense tensor; give token indices of shape (images, pixels).")
        n_positions = tokens_BT.shape[1]
        if n_positions > self.config.n_positions:
            raise UserError(
                f"The images have {n_positions} pixels, but the model has {self.config.n_positions} positions; "
                "resize the images to the model's resolution."
            )
        if self.config.causal:
            if mask_BT is not None:
                raise UserError("A mask was given to an autoregressive model; only BERT models (causal=False) use one.")
            content = self.wte(tokens_BT[:, :-1].long())
            content = torch.cat([self.sos.to(content.dtype).expand(len(tokens_BT), 1, -1), content], dim=1)
        else:
            content = self.wte(tokens_BT.long())
            if mask_BT is not None:
                check_mask(mask_BT, tokens_BT)
                content = content.masked_fill(mask_BT[..., None], 0)
        return content + self.wpe.weight[:n_positions]

    def hidden_states(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the L + 1 raw residual states, each (B, T, D): the embedding, then the state after each block.

        Only the last yielded state is kept in memory; `igpt_model.features` defines "layer k".
        """
        h_BTD = self.embed(tokens_BT, mask_BT)
        yield h_BTD
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                h_BTD = checkpoint(block, h_BTD, use_reentrant=False)
            else:
                h_BTD = block(h_BTD)
            yield h_BTD

    def last_state(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return the residual state after the last block, (B, T, D), before `ln_f`."""
        for h_BTD in self.hidden_states(tokens_BT, mask_BT):
            last_BTD = h_BTD
        return last_BTD

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Return the float32 logits (..., V) for a last residual state (..., D)."""
        return self.head(self.ln_f(h_BTD)).float()

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return logits_BTV in float32; position t of an autoregressive model predicts pixel t from those before it.

        Parameters
        ----------
        tokens_BT : integer tensor (B, T), T at most `n_positions`
        mask_BT : bool tensor (B, T), optional
            BERT only: True where the pixel is hidden.
        """
        return self.logits(self.last_state(tokens_BT, mask_BT))
