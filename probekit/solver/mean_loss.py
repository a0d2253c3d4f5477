"""One pass over the rows for many probes at once: losses, gradients, Hessian products, mean softmax covariances.

The logits of P probes with R coefficient rows are one product (P*R, D+1) x (D+1, n), class-major, in row blocks small
enough to stay in cache. The labels enter only through M = sum_i w_i onehot(y_i) x_i', computed once, since
    mean loss = sum_i w_i logsumexp(theta x_i) - <theta, M>     and     gradient = sum_i w_i p_i x_i' - M .
Two classes: logsumexp is softplus, p the sigmoid, M the sum over rows of the second class.

Shapes: P probes, R coefficient rows, D features, n rows of a block. theta (P, R, D+1), the intercept last.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probekit.solver.data import STREAM_ROWS, Rows, sum_over_ranks

# logits of a block. CPU: about 1 MiB, which stays in cache and is enough for two threads to share. GPU: a kernel is
# started in microseconds, in which it computes millions; 256 MiB leave the memory to the rows
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}


@dataclass(frozen=True)
class Evaluation:
    """Of one pass: loss (P,) float64, gradient (P, R, D+1), both with the penalty; probabilities (P, R, N) or None."""

    loss: Tensor
    gradient: Tensor
    probabilities: Tensor | None = None


@dataclass
class MeanLoss:
    """The mean loss of the rows as a function of theta, with its reusable buffers.

    Attributes
    ----------
    rows : the data; weights over all ranks sum to 1
    """

    rows: Rows
    _label_sums: Tensor | None = None
    _buffer: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def label_sums(self) -> Tensor:
        """M (R, D+1) float64: weighted sums of the rows of each class (of the second class only, if K = 2)."""
        if self._label_sums is None:
            rows = self.rows
            sums = torch.zeros(rows.n_classes, rows.width + 1, dtype=torch.float64, device=rows.device)
            for X, y, weights in rows.blocks(STREAM_ROWS):
                sums.index_add_(0, y, X.double() * weights[:, None])
            sum_over_ranks(sums)
            self._label_sums = sums[1:] if rows.n_classes == 2 else sums
        return self._label_sums

    def logits(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks (X, weights in the working dtype, logits (P, R, n)) of probes theta; the logits' buffer is reused."""
        P, R, columns = theta.shape
        return self._blocks(theta.reshape(P * R, columns), P)

    def linear(self, theta: Tensor) -> Tensor:
        """Logits (P, R, N) of every row without their intercepts."""
        P, R, columns = theta.shape
        coef, start = theta[..., :-1].reshape(P * R, columns - 1), 0
        out = torch.empty(P * R, len(self.rows), dtype=theta.dtype, device=theta.device)
        for X, _, _ in self.rows.blocks(STREAM_ROWS):
            torch.mm(coef, X[:, :-1].T, out=out[:, start : start + len(X)])
            start += len(X)
        return out.view(P, R, -1)

    def _blocks(self, flat: Tensor, P: int, linear: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks (X, weights in the working dtype, logits (P, R, n)); the logits' buffer is reused."""
        PR, start = len(flat), 0
        step = max(BLOCK_ELEMENTS.get(flat.device.type, 1 << 18) // PR, 128)
        step = max(-(-len(self.rows) // -(-len(self.rows) // step)), 1)  # blocks of equal size
        if self._buffer.numel() < PR * step:
            self._buffer = torch.empty(PR * step, dtype=flat.dtype, device=flat.device)
        for X, _, weights in self.rows.blocks(step):
            z = self._buffer[: PR * len(X)].view(PR, len(X))
            if linear is None:
                torch.mm(flat, X.T, out=z)
            else:
                torch.add(linear.view(PR, -1)[:, start : start + len(X)], flat[:, -1:], out=z)
            start += len(X)
            yield X, weights.to(flat.dtype), z.view(P, PR // P, len(X))

    def evaluate(
        self, theta: Tensor, l2: Tensor, keep: torch.dtype | None = None, linear: Tensor | None = None
    ) -> Evaluation:
        """Losses and gradients of P probes at theta with penalties l2 (P,) float64.

        `keep` is the dtype of kept probabilities; `linear`, the logits without intercepts, saves a product.
        """
        P, R, columns = theta.shape
        flat, start = theta.reshape(P * R, columns), 0
        kept = torch.empty(P, R, len(self.rows), dtype=keep, device=theta.device) if keep else None
        loss = torch.zeros(P, dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(flat)
        for X, weights, z in self._blocks(flat, P, linear):
            # the sum is a small difference from the labels' part: float64, for a K-th of the work
            loss += softmax_(z).double() @ weights.double()
            if kept is not None:
                kept[:, :, start : start + len(X)] = z
                start += len(X)
            gradient.addmm_(z.mul_(weights).view(P * R, len(X)), X)
        sum_over_ranks(loss, gradient)
        exact, M = theta.double(), self.label_sums
        loss += 0.5 * l2 * exact[..., :-1].square().sum(dim=(1, 2)) - (exact * M).sum(dim=(1, 2))
        gradient = gradient.view(P, R, columns) - M.to(theta.dtype)
        gradient[..., :-1] += (l2[:, None, None] * exact[..., :-1]).to(theta.dtype)
        return Evaluation(loss, gradient, kept)

    def covariance(self, theta: Tensor) -> Tensor:
        """Weighted mean softmax covariance diag(p) - p p' of each probe (P, R, R) float64."""
        P, R, _ = theta.shape
        covariance = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device)
        for _, weights, z in self.logits(theta):
            softmax_(z)
            covariance += covariance_of(z, weights)
        sum_over_ranks(covariance)
        return covariance

    def probabilities(self, theta: Tensor) -> Tensor:
        """Probabilities of every row (P, R, N)."""
        P, R, _ = theta.shape
        out, start = torch.empty(P, R, len(self.rows), dtype=theta.dtype, device=theta.device), 0
        for X, _, z in self.logits(theta):
            softmax_(z)
            out[:, :, start : start + len(X)] = z
            start += len(X)
        return out

    def hessian_products(
        self, theta: Tensor, l2: Tensor, direction: Tensor, probabilities: Tensor | None = None
    ) -> Tensor:
        """Hessian at theta times direction (P, R, D+1); probabilities (P, R, N) save one of three products."""
        P, R, columns = theta.shape
        flat, start = direction.reshape(P * R, columns), 0
        product = torch.zeros_like(flat)
        at = theta.reshape(P * R, columns)
        for X, weights, v in self._blocks(flat, P):
            if probabilities is None:
                p = torch.mm(at, X.T).view(P, R, len(X))
                softmax_(p)
            else:
                p = probabilities[:, :, start : start + len(X)]
            start += len(X)
            if R == 1:
                v.mul_(p).mul_(1 - p)
            else:
                v.sub_((p * v).sum(dim=1, keepdim=True)).mul_(p)
            product.addmm_(v.mul_(weights).view(P * R, len(X)), X)
        sum_over_ranks(product)
        product = product.view(P, R, columns)
        product[..., :-1] += l2.to(theta.dtype)[:, None, None] * direction[..., :-1]
        return product


def softmax_(z: Tensor) -> Tensor:
    """Logits (P, R, n) into probabilities, in place; returns logsumexp (P, n) (softplus, if R = 1)."""
    if z.shape[1] == 1:
        log_total = torch.nn.functional.softplus(z[:, 0])
        z.sigmoid_()
        return log_total
    top = z.amax(dim=1, keepdim=True)
    total = z.sub_(top).exp_().sum(dim=1, keepdim=True)
    z.mul_(1 / total)
    return total.log_().add_(top)[:, 0]


def covariance_of(p: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over rows of diag(p) - p p' (P, R, R); p (1 - p) for the sigmoid."""
    weighted = p * weights
    if p.shape[1] == 1:
        return (weighted * (1 - p)).sum(dim=2, keepdim=True)
    return torch.diag_embed(weighted.sum(dim=2)) - weighted @ p.transpose(1, 2)
