"""The forward pass on a CPU without gradients, equivalent to `model.py` at the speed of its matrix products.

Letters: M images of a piece, T positions, D width, H heads, E head width, N = M * T rows, R query rows of a strip.

The plain pass loses time by allocating every result. Here a few images at a time are processed in buffers that stay in
the cache; each thread processes separate images; the activation is fused into the matrix product; and causal attention
uses only the keys visible to a strip of queries.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from igpt_model.model import GELU_SLOPE, IGPT, NORM_EPS

PIECE = 1 << 18
"""Residual stream values per thread at a time; with the MLP's four times as many they take 5 MB."""
STRIP = 64


def fits(model: IGPT) -> bool:
    """Return whether this path can be used: float32 on a CPU, no gradients, no autocast."""
    weight = model.wte.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def pieces(model: IGPT, n_images: int, n_positions: int) -> list[slice]:
    """Return the pieces of images processed together, of almost equal size.

    Pieces depend on the model and the batch, not on the number of threads; their number is even, for two threads.
    """
    most = max(1, PIECE // (n_positions * model.config.n_embd))
    count = -(-n_images // most)
    count = min(n_images, count + count % 2)
    edges = [n_images * i // count for i in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def for_each_piece(model: IGPT, n_images: int, n_positions: int, action: Callable[[slice, "Workspace"], None]) -> None:
    """Call `action` with every piece, on as many threads as PyTorch uses, with single-threaded operations.

    The result does not depend on the number of threads, to the bit.
    """
    todo = pieces(model, n_images, n_positions)
    mine = threading.local()

    @torch.inference_mode()
    def run(rows: slice) -> None:
        size = rows.stop - rows.start
        if getattr(mine, "work", None) is None or mine.work.n_images != size:
            mine.work = Workspace(model, size, n_positions)
        action(rows, mine.work)

    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads, "igpt", torch.set_num_threads, (1,)) as threads:
            list(threads.map(run, todo))
    finally:
        # PyTorch's number of threads is per thread, but new threads start with the last number set
        torch.set_num_threads(n_threads)


class Workspace:
    """Buffers for pieces of one size, reused for every block and piece."""

    def __init__(self, model: IGPT, n_images: int, n_positions: int) -> None:
        c = model.config
        self.n_images, self.n_positions, self.n_head = n_images, n_positions, c.n_head
        self.width = c.n_embd // c.n_head
        rows, batch = n_images * n_positions, n_images * c.n_head
        self.heads_3BTE = torch.empty(3, batch, n_positions, self.width)
        self.mixed = torch.empty(batch * STRIP * self.width)
        self.mixed_ND = torch.empty(rows, c.n_embd)
        self.normed_ND = torch.empty(rows, c.n_embd)
        self.scores = torch.empty(batch * STRIP * n_positions)
        self.future_RR = torch.full((STRIP, STRIP), float("-inf")).triu(1) if c.causal else None

    def attend(self, qkv_N3D: Tensor) -> Tensor:
        """Attention, (N, D)."""
        m, t, h, e = self.n_images, self.n_positions, self.n_head, self.width
        self.heads_3BTE.view(3, m, h, t, e).copy_(qkv_N3D.view(m, t, 3, h, e).permute(2, 0, 3, 1, 4))
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

    def normalise(self, h_ND: Tensor, gain_D: Tensor) -> Tensor:
        """h / rms(h) * gain, in a buffer."""
        scale_N1 = torch.linalg.vector_norm(h_ND, dim=1, keepdim=True).square_()
        scale_N1.div_(h_ND.shape[1]).add_(NORM_EPS).rsqrt_()
        return torch.mul(h_ND, scale_N1, out=self.normed_ND).mul_(gain_D)


def states_in_place(
    model: IGPT, tokens_MT: Tensor, mask_MT: Tensor | None, work: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the L + 1 residual states (M, T, D), each with its normalised version for the next layer.

    Both are overwritten when the next pair is requested.
    """
    h_MTD = model.embed(tokens_MT, mask_MT).contiguous()
    h_ND = h_MTD.view(-1, h_MTD.shape[-1])
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        normed_ND = work.normalise(h_ND, block.ln_1.g)
        yield h_MTD, normed_ND.view_as(h_MTD)
        mixed_ND = work.attend(_product(normed_ND, attn.c_attn.weight, attn.c_attn.bias))
        h_ND += _product(mixed_ND, attn.c_proj.weight, attn.c_proj.bias)
        # x sigmoid(s x) = silu(s x) / s, with s folded into the gain before and the sum after
        normed_ND, bias = work.normalise(h_ND, block.ln_2.g * GELU_SLOPE), mlp.c_fc.bias
        hidden_N4D = _product(normed_ND, mlp.c_fc.weight, None if bias is None else bias * GELU_SLOPE, silu=True)
        h_ND.add_(_product(hidden_N4D, mlp.c_proj.weight), alpha=1 / GELU_SLOPE)
        if mlp.c_proj.bias is not None:
            h_ND += mlp.c_proj.bias
    yield h_MTD, work.normalise(h_ND, model.ln_f.g).view_as(h_MTD)


def has_onednn() -> bool:
    """Return whether oneDNN is enabled and this PyTorch has its linear layer (for compiled models)."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x_ND: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """x W' + b, or silu of it, by oneDNN, which is faster at these sizes than the BLAS of `F.linear`."""
    if has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x_ND, weight, bias, "swish" if silu else "none", [], "")
    y = F.linear(x_ND, weight, bias)
    return F.silu(y, inplace=True) if silu else y
