"""The forward pass on a CPU without gradients: the same numbers as `model.py`, at the speed of the matrix products.

Letters: M images of a piece, T positions, D width, H heads, E head width, N = M * T rows, R query rows of a strip.

What the plain pass loses there is memory: each operation allocates its result, and the pages of a large one are mapped
anew every time. Here a few images at a time go through buffers that stay in the cache and are used again; the residual
is added by the matrix product itself; so is the slope of the activation; and of causal attention only the keys that a
strip of queries may see are computed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .model import GELU_SLOPE, IGPT, NORM_EPS, Linear, RMSNorm

PIECE = 1 << 18
"""Numbers of the residual stream that are worked on at a time: with the four times as many of the MLP, 5 MB."""
STRIP = 64


def fits(model: IGPT) -> bool:
    """Whether this path may be taken: float32 on a CPU, no gradients, no autocast."""
    weight = model.wte.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def piece_size(model: IGPT, n_positions: int) -> int:
    """How many images go through the blocks together; it depends on the model alone, never on the batch."""
    return max(1, PIECE // (n_positions * model.config.n_embd))


class Workspace:
    """Buffers for pieces of one size, used again for every block and every piece."""

    def __init__(self, model: IGPT, n_images: int, n_positions: int) -> None:
        c = model.config
        self.n_images, self.n_positions, self.n_head = n_images, n_positions, c.n_head
        self.width = c.n_embd // c.n_head
        rows, batch = n_images * n_positions, n_images * c.n_head
        self.qkv_ND = torch.empty(rows, 3 * c.n_embd)
        self.heads_3BTE = torch.empty(3, batch, n_positions, self.width)
        self.mixed = torch.empty(batch * STRIP * self.width)
        self.mixed_ND = torch.empty(rows, c.n_embd)
        self.normed_ND = torch.empty(rows, c.n_embd)
        self.hidden_N4D = torch.empty(rows, 4 * c.n_embd)
        self.scores = torch.empty(batch * STRIP * n_positions)
        self.future_RR = torch.full((STRIP, STRIP), float("-inf")).triu(1) if c.causal else None

    def attend(self) -> Tensor:
        """Attention of `qkv_ND`, (N, D)."""
        m, t, h, e = self.n_images, self.n_positions, self.n_head, self.width
        self.heads_3BTE.view(3, m, h, t, e).copy_(self.qkv_ND.view(m, t, 3, h, e).permute(2, 0, 3, 1, 4))
        q, k, v = self.heads_3BTE
        mixed_MTHE = self.mixed_ND.view(m, t, h, e)
        for start in range(0, t, STRIP):
            stop = min(start + STRIP, t)
            seen = t if self.future_RR is None else stop
            scores = self.scores[: m * h * (stop - start) * seen].view(m * h, stop - start, seen)
            torch.baddbmm(scores, q[:, start:stop], k[:, :seen].mT, beta=0, alpha=e**-0.5, out=scores)
            if self.future_RR is not None:
                scores[:, :, start:] += self.future_RR[: stop - start, : stop - start]
            torch.softmax(scores, -1, out=scores)
            mixed = self.mixed[: m * h * (stop - start) * e].view(m * h, stop - start, e)
            torch.bmm(scores, v[:, :seen], out=mixed)
            mixed_MTHE[:, start:stop].copy_(mixed.view(m, h, stop - start, e).transpose(1, 2))
        return self.mixed_ND

    def normalise(self, norm: RMSNorm, h_ND: Tensor) -> Tensor:
        """`norm(h)`, in a buffer."""
        scale_N1 = torch.linalg.vector_norm(h_ND, dim=1, keepdim=True).square_()
        scale_N1.div_(h_ND.shape[1]).add_(NORM_EPS).rsqrt_()
        return torch.mul(h_ND, scale_N1, out=self.normed_ND).mul_(norm.g)


def states_in_place(
    model: IGPT, tokens_MT: Tensor, mask_MT: Tensor | None, work: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the L + 1 residual states (M, T, D), each with itself after the norm that reads it next.

    Both are overwritten when the next pair is asked for.
    """
    h_MTD = model.embed(tokens_MT, mask_MT).contiguous()
    h_ND = h_MTD.view(-1, h_MTD.shape[-1])
    for block in model.blocks:
        normed_ND = work.normalise(block.ln_1, h_ND)
        yield h_MTD, normed_ND.view_as(h_MTD)
        _product(block.attn.c_attn, normed_ND, work.qkv_ND)
        _add_product(block.attn.c_proj, work.attend(), h_ND)
        # x sigmoid(s x) = silu(s x) / s, the slope s taken into the two products
        _product(block.mlp.c_fc, work.normalise(block.ln_2, h_ND), work.hidden_N4D, GELU_SLOPE)
        _add_product(block.mlp.c_proj, F.silu(work.hidden_N4D, inplace=True), h_ND, 1 / GELU_SLOPE)
    yield h_MTD, work.normalise(model.ln_f, h_ND).view_as(h_MTD)


def _product(layer: Linear, x_ND: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """out = scale * (x W' + b)."""
    bias = out if layer.bias is None else layer.bias
    torch.addmm(bias, x_ND, layer.weight.t(), beta=0 if layer.bias is None else scale, alpha=scale, out=out)


def _add_product(layer: Linear, x_ND: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """out += scale * x W' + b."""
    out.addmm_(x_ND, layer.weight.t(), alpha=scale)
    if layer.bias is not None:
        out += layer.bias
