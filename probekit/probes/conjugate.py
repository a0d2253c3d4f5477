"""Newton's step and decrement by preconditioned conjugate gradients, for many problems at once."""

import torch
from torch import Tensor

from probekit.probes.lbfgs import Preconditioner, dot
from probekit.probes.passes import MeanLoss

KEEP_BYTES = 1 << 28  # probabilities kept between products, which saves one matrix product of three


def newton_step(
    loss: MeanLoss,
    theta: Tensor,
    l2: Tensor,
    gradient: Tensor,
    precondition: Preconditioner,
    max_iter: int = 300,
    rtol: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve H step = gradient for P problems.

    The sum of the steps' gains approaches the decrement g' H^-1 g from below; a problem stops when the estimated rest
    of that series is less than `rtol` of its sum.

    Parameters
    ----------
    loss : the rows, in the dtype of the products
    theta, gradient : (P, R, D+1); the gradient in float64 from wherever it was measured best
    l2 : (P,) penalties
    precondition : approximate inverse Hessian

    Returns
    -------
    step (P, R, D+1) in float64, decrement (P,) = g' H^-1 g, products used (P,)
    """
    P, R, _ = theta.shape
    dtype = loss.rows.dtype
    bytes_each = R * len(loss.rows) * torch.finfo(dtype).bits // 8
    group = max(int(KEEP_BYTES // bytes_each), 1)
    parts = [
        _conjugate_gradients(
            loss, theta[s], l2[s], gradient[s], precondition, max_iter, rtol, bytes_each <= KEEP_BYTES, s
        )
        for s in (torch.arange(P, device=theta.device).split(group))
    ]
    step, decrement, products = (torch.cat([part[i] for part in parts]) for i in range(3))
    return step, decrement, products


def _conjugate_gradients(
    loss: MeanLoss,
    theta: Tensor,
    l2: Tensor,
    gradient: Tensor,
    precondition: Preconditioner,
    max_iter: int,
    rtol: float,
    keep: bool,
    names: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    P = len(theta)
    dtype, device = loss.rows.dtype, theta.device
    step = torch.zeros_like(gradient, dtype=torch.float64)
    decrement = torch.zeros(P, dtype=torch.float64, device=device)
    products = torch.zeros(P, dtype=torch.int64, device=device)
    # float32 directions of a gradient that may be 1e-12: scale it to one
    scale = gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    at = theta.to(dtype)
    probabilities = loss.probabilities(at) if keep else None
    index = torch.arange(P, device=device)
    r = (gradient / scale[:, None, None]).to(dtype)
    z = precondition(r, names)
    rz = dot(r, z)
    d = z
    gains: list[Tensor] = []
    for _ in range(max_iter):
        if not len(index):
            break
        Hd = loss.hessian_products(at, l2[index], d, probabilities)
        curvature = dot(d, Hd)
        good = (curvature > 0) & (rz > 0)
        alpha = torch.where(good, rz / curvature.clamp_min(1e-300), 0.0)
        step[index] += (alpha * scale[index])[:, None, None] * d.double()
        gain = alpha * rz
        decrement[index] += gain * scale[index].square()
        products[index] += 1
        gains = [*gains[-3:], gain]
        r = r - alpha.to(dtype)[:, None, None] * Hd
        z = precondition(r, names[index])
        new_rz = dot(r, z)
        d = z + (new_rz / rz.clamp_min(1e-300)).to(dtype)[:, None, None] * d
        rz = new_rz
        more = good & (_rest(gains, rz) > rtol * decrement[index] / scale[index].square())
        if not bool(more.all()):
            index, r, d, rz, at = index[more], r[more], d[more], rz[more], at[more]
            gains = [value[more] for value in gains]
            probabilities = None if probabilities is None else probabilities[more]
    return step, decrement, products


def _rest(gains: list[Tensor], rz: Tensor) -> Tensor:
    """Estimate of all gains to come: a geometric series through the last ones, at least the preconditioner's own estimate."""
    if len(gains) < 2:
        # with a good preconditioner r' M r is what is left to gain
        return rz
    ratio = (gains[-1] / gains[0].clamp_min(1e-300)).pow(1 / (len(gains) - 1)).clamp(0.0, 0.95)
    return torch.maximum(gains[-1] * ratio / (1 - ratio), rz)
