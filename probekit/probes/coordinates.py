"""Solver coordinates: centred rows in the eigenbasis of X'X, reduced to rank when D > N.

The l2 penalty does not see rotations, so this changes nothing but the conditioning: in these coordinates the Kronecker
preconditioner (mean softmax covariance x X'X) is diagonal. With more features than rows a thin QR of X' first brings
the problem to N columns, exactly: the optimum lies in the row space.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.probes.rows import STREAM_ROWS, Rows, sum_over_ranks


@dataclass(frozen=True)
class Coordinates:
    """Rows in solver coordinates z = (x - shift) projection, and the ways between both.

    Attributes
    ----------
    rows : in solver coordinates, in memory or streamed
    shift (D,), projection (D, r) : float64
    eigenvalues (r,) : of the weighted, centred X'X
    """

    rows: Rows
    shift: Tensor
    projection: Tensor
    eigenvalues: Tensor

    def to_original(self, theta: Tensor) -> Tensor:
        """Solver parameters (P, R, r+1) as parameters of the original rows (P, R, D+1), float64."""
        coef = theta[..., :-1].double() @ self.projection.T
        return torch.cat([coef, theta[..., -1:].double() - (coef @ self.shift)[..., None]], dim=-1)

    def gradient_to_solver(self, gradient: Tensor) -> Tensor:
        """A gradient with respect to original parameters as one with respect to the solver's."""
        centred = gradient[..., :-1] - gradient[..., -1:] * self.shift
        return torch.cat([centred @ self.projection, gradient[..., -1:]], dim=-1)


def eigenbasis(rows: Rows, in_memory: bool = True) -> Coordinates:
    """Find the coordinates; `in_memory` holds the rotated rows, otherwise they are rotated as they are streamed."""
    D = rows.width
    shift = torch.zeros(D, dtype=torch.float64, device=rows.device)
    if rows.intercept:
        for X, _, weights in rows.blocks(STREAM_ROWS):
            shift += (weights.to(X.dtype) @ X[:, :-1]).double()
        sum_over_ranks(shift)
    # the transformation of a block is (x - shift) / scale: a shift of scaled features moves by shift * scale
    raw_shift = shift if rows.scale is None else shift * rows.scale
    centred = replace(rows, shift=raw_shift if rows.shift is None else rows.shift + raw_shift)
    reduction = None
    if D > len(rows) and not torch.distributed.is_initialized():
        exact = replace(centred, dtype=torch.float64)
        reduction, _ = torch.linalg.qr(torch.cat([X[:, :-1] for X, _, _ in exact.blocks(STREAM_ROWS)]).T)
        centred = replace(centred, projection=reduction)
    if in_memory and reduction is None:
        centred = centred.materialise()
    r = centred.width
    # any orthonormal basis is exact, so the moment may be summed in the working precision
    moment = torch.zeros(r, r, dtype=torch.float64, device=rows.device)
    for X, _, weights in centred.blocks(STREAM_ROWS):
        moment += (X[:, :-1].T @ (X[:, :-1] * weights.to(X.dtype)[:, None])).double()
    sum_over_ranks(moment)
    values, vectors = torch.linalg.eigh(moment)
    projection = vectors if reduction is None else reduction @ vectors
    if centred.ready:
        X = torch.empty_like(centred.X)
        X[:, -1] = centred.X[:, -1]
        torch.mm(centred.X[:, :-1], vectors.to(X.dtype), out=X[:, :-1])
        rotated = replace(centred, X=X)
    else:
        rotated = replace(centred, projection=projection)
        rotated = rotated.materialise() if in_memory else rotated
    return Coordinates(rotated, shift, projection, values.clamp_min(0))
