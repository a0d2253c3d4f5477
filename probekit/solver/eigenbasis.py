"""The solver's coordinates: centred rows in the eigenvectors of X'X, without directions in which rows do not vary.

The l2 penalty is invariant under rotations, so the optimum is the same in any orthonormal basis of the rows' span. In
the eigenbasis the size of a column is the spread along its direction, and float32 rounds it relative to that size. (In
the original columns float32 loses curvature below 1e-7 of the largest: 10,000 x 256 standardised features took 15,700
products, and 956 in the eigenbasis.) The default preconditioner is diagonal in this basis.

Directions in which the rows do not vary (more features than rows, grey pixels in RGB, dead units) are left out. The
components of the rows along them are measured and enter the certificate like rounding errors; if they are too large for
the tolerance, all directions are kept.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.solver.data import STREAM_ROWS, WeightedData, weighted_mean

NULL = 1e-13  # an eigenvalue of X'X below this fraction of the largest may be rounding
WORTH_REDUCING = 0.75  # reduce the basis only if at most this fraction of its directions remains


@dataclass(frozen=True)
class Coordinates:
    """Rows z = (x - shift) basis.

    Attributes
    ----------
    data, exact : the rows in the working precision and in float64, in memory or streamed; the same object if the
        working precision is float64
    shift : (D,) float64
    basis, eigenvalues : (D, r) with orthonormal columns, and (r,) of the weighted X'X, float64
    left_out : (N,) measured norms of the centred rows' components outside the basis
    """

    data: WeightedData
    exact: WeightedData
    shift: Tensor
    basis: Tensor
    eigenvalues: Tensor
    left_out: Tensor

    def to_columns(self, theta: Tensor) -> Tensor:
        """Parameters or gradients (P, R, r+1) from those for the columns of the centred rows (P, R, D+1)."""
        return torch.cat([theta[..., :-1] @ self.basis.T, theta[..., -1:]], dim=-1)

    def to_original(self, theta: Tensor) -> Tensor:
        """Convert solver parameters (P, R, r+1) to parameters for the original rows (P, R, D+1)."""
        W = theta[..., :-1] @ self.basis.T
        return torch.cat([W, theta[..., -1:] - (W @ self.shift)[..., None]], dim=-1)

    def from_original(self, theta: Tensor) -> Tensor:
        """The inverse of `to_original`, for a basis of all directions."""
        W, b = theta[..., :-1], theta[..., -1:] + (theta[..., :-1] @ self.shift)[..., None]
        return torch.cat([W @ self.basis, b], dim=-1)


def find_coordinates(data: WeightedData, in_memory: bool = True, negligible: float = -1.0) -> Coordinates:
    """Centre the rows and compute their basis; if `in_memory`, keep the rows, otherwise stream them from their source.

    `negligible` limits the weighted mean square of the rows outside the basis; if negative, all columns are kept.
    """
    shift = weighted_mean(data) if data.intercept else torch.zeros(data.width, dtype=torch.float64, device=data.device)
    # a block is (x - shift) / scale, so a shift of the scaled features is one of shift * scale before scaling
    raw_shift = shift if data.scale is None else shift * data.scale
    centred = replace(data, dtype=torch.float64, shift=raw_shift if data.shift is None else data.shift + raw_shift)
    rows = centred
    if len(data) < data.width and negligible >= 0 and not data.sharded:
        of_rows = torch.linalg.qr(torch.cat([X[:, :-1] for X, _, _ in centred.blocks(STREAM_ROWS)]).T)[0]
        rows = replace(centred, projection=of_rows)
    moment = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=rows.device)
    for X, _, weights in rows.blocks(STREAM_ROWS):
        moment += X[:, :-1].T @ (X[:, :-1] * weights[:, None])
    rows.sum_over_ranks(moment)
    values, vectors = torch.linalg.eigh(moment)
    basis = vectors if rows is centred else of_rows @ vectors
    left_out = torch.zeros_like(data.weights) if rows is centred else _left_out(centred, basis)
    some = values > NULL * values[-1]
    if negligible >= 0 and 0 < int(some.sum()) <= WORTH_REDUCING * len(values):
        outside = _left_out(centred, basis[:, some])
        if data.over_ranks(float(data.weights @ outside.square()), "SUM") <= negligible:
            basis, values, left_out = basis[:, some], values[some], outside
    exact = replace(centred, projection=basis)
    if in_memory:
        exact = exact.materialise()
    working = exact
    if data.dtype != torch.float64:
        working = replace(exact, X=exact.X.to(data.dtype) if in_memory else exact.X, dtype=data.dtype)
    return Coordinates(working, exact, shift, basis, values.clamp_min(0), left_out)


def _left_out(centred: WeightedData, basis: Tensor) -> Tensor:
    """Norms (N,) of the rows' components outside a basis (D, r)."""
    rows = (X[:, :-1] for X, _, _ in centred.blocks(STREAM_ROWS))
    return torch.cat([torch.linalg.vector_norm(X - (X @ basis) @ basis.T, dim=1) for X in rows])
