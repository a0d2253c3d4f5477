"""One pass over the rows for many probes at once: losses, gradients, mean softmax covariances, Hessian products.

The logits of P probes with R coefficient rows are one matrix product (P*R, D) x (D, n), class-major, taken in row blocks that stay in cache.
Parameters are theta (P, R, D+1): the last column is the intercept, which no penalty touches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.probes.rows import Rows, sum_over_ranks


@dataclass(frozen=True)
class Evaluation:
    """What one pass returns: loss (P,) float64, gradient (P, R, D+1), mean softmax covariance (P, R, R) or None."""

    loss: Tensor
    gradient: Tensor
    covariance: Tensor | None


def scores(theta: Tensor, X: Tensor) -> Tensor:
    """Class-major logits (P, R, n)."""
    P, R, columns = theta.shape
    flat = theta.reshape(P * R, columns)
    return torch.addmm(flat[:, -1:], flat[:, :-1], X.T).view(P, R, len(X))


def softmax_and_loss_(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits (P, R, n) into probabilities in place; also the cross-entropy of each row (P, n)."""
    P, R, n = z.shape
    if R == 1:
        sign = (1 - 2 * y).to(z.dtype)
        loss = torch.nn.functional.softplus(z[:, 0] * sign)
        return z.sigmoid_(), loss
    z.sub_(z.amax(dim=1, keepdim=True))
    own = z.gather(1, y.view(1, 1, n).expand(P, 1, n))[:, 0]
    total = z.exp_().sum(dim=1)
    z.div_(total[:, None])
    return z, total.log_().sub_(own)


def subtract_labels_(p: Tensor, y: Tensor) -> Tensor:
    """Probabilities minus one-hot labels, in place."""
    if p.shape[1] == 1:
        return p.sub_(y.to(p.dtype))
    index = y.view(1, 1, -1).expand(p.shape[0], 1, len(y))
    return p.scatter_add_(1, index, torch.full_like(index, -1, dtype=p.dtype))


def covariance_of(p: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over rows of diag(p) - p p' (P, R, R); for the sigmoid, of p (1 - p)."""
    weighted = p * weights
    if p.shape[1] == 1:
        return (weighted * (1 - p)).sum(dim=2, keepdim=True)
    return torch.diag_embed(weighted.sum(dim=2)) - weighted @ p.transpose(1, 2)


def evaluate(rows: Rows, theta: Tensor, l2: Tensor, with_covariance: bool = False) -> Evaluation:
    """Losses and gradients of P probes in one pass.

    Parameters
    ----------
    rows : the data, weights summing to 1
    theta : (P, R, D+1) parameters in `rows.dtype`
    l2 : (P,) float64 penalties of the mean loss
    with_covariance : also return the weighted mean softmax covariance, the class factor of the Kronecker preconditioner
    """
    P, R, columns = theta.shape
    loss = torch.zeros(P, dtype=torch.float64, device=theta.device)
    gradient = torch.zeros(P * R, columns, dtype=theta.dtype, device=theta.device)
    covariance = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device) if with_covariance else None
    for X, y, weights in rows.blocks():
        w = weights.to(theta.dtype)
        p, losses = softmax_and_loss_(scores(theta, X), y)
        loss += losses.to(torch.float64) @ weights
        if covariance is not None:
            covariance += covariance_of(p, w)
        residual = subtract_labels_(p, y).mul_(w).view(P * R, len(X))
        gradient[:, :-1].addmm_(residual, X)
        gradient[:, -1] += residual.sum(dim=1)
    sum_over_ranks(loss, gradient, *([] if covariance is None else [covariance]))
    coef = theta[..., :-1].to(torch.float64)
    loss += 0.5 * l2 * coef.square().sum(dim=(1, 2))
    gradient = gradient.view(P, R, columns)
    gradient[..., :-1] += (l2[:, None, None] * coef).to(theta.dtype)
    if not rows.intercept:
        gradient[..., -1] = 0
    return Evaluation(loss, gradient, covariance)


def hessian_products(rows: Rows, theta: Tensor, l2: Tensor, direction: Tensor) -> Tensor:
    """Hessian at theta times direction, both (P, R, D+1)."""
    P, R, columns = theta.shape
    product = torch.zeros(P * R, columns, dtype=theta.dtype, device=theta.device)
    for X, y, weights in rows.blocks():
        p, _ = softmax_and_loss_(scores(theta, X), y)
        v = scores(direction, X)
        if R == 1:
            v = v * p * (1 - p)
        else:
            v = p * (v - (p * v).sum(dim=1, keepdim=True))
        v = v.mul_(weights.to(v.dtype)).view(P * R, len(X))
        product[:, :-1].addmm_(v, X)
        product[:, -1] += v.sum(dim=1)
    sum_over_ranks(product)
    product = product.view(P, R, columns)
    product[..., :-1] += l2.to(theta.dtype)[:, None, None] * direction[..., :-1]
    if not rows.intercept:
        product[..., -1] = 0
    return product
