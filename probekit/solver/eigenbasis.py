"""Solver coordinates: centred rows in the eigenbasis of X'X, reduced to rank when D > N.

The l2 penalty does not see rotations, so this changes nothing but the conditioning: in these coordinates the Kronecker
preconditioner (mean softmax covariance x X'X) is diagonal. With more features than rows a thin QR of X' first brings
the problem to N columns, exactly: the optimum lies in the row space. Columns that depend on others (grey pixels in
RGB, dead units) leave in the same way.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.solver.data import STREAM_ROWS, Rows, are_dealt, sum_over_ranks

NEARLY_NULL = 1e-10  # an eigenvalue of X'X below this share of the largest asks for a closer look at the rank
NULL = 1e-13  # a singular value of X below this share of the largest is rounding


@dataclass(frozen=True)
class Coordinates:
    """Rows in solver coordinates z = (x - shift) projection, and the ways between both.

    Attributes
    ----------
    rows : in solver coordinates and the working precision, in memory or streamed
    exact : the same in float64
    shift (D,), projection (D, r) : float64
    eigenvalues (r,) : of the weighted, centred X'X
    """

    rows: Rows
    exact: Rows
    shift: Tensor
    projection: Tensor
    eigenvalues: Tensor

    def to_original(self, theta: Tensor) -> Tensor:
        """Solver parameters (P, R, r+1) as parameters of the original rows (P, R, D+1), float64."""
        coef = theta[..., :-1].double() @ self.projection.T
        return torch.cat([coef, theta[..., -1:].double() - (coef @ self.shift)[..., None]], dim=-1)

    def to_solver(self, theta: Tensor) -> Tensor:
        """The inverse, for coefficients in the row space; float64."""
        theta = theta.double()
        intercept = theta[..., -1:] + (theta[..., :-1] @ self.shift)[..., None]
        return torch.cat([theta[..., :-1] @ self.projection, intercept], dim=-1)

    def gradient_to_original(self, gradient: Tensor) -> Tensor:
        """A gradient with respect to the solver's parameters as one with respect to the original coefficients."""
        return gradient[..., :-1] @ self.projection.T + gradient[..., -1:] * self.shift


def row_space(X: Tensor) -> Tensor:
    """Orthonormal basis (r, rank) of the rows of X (N, r).

    Directions along which no row moves hold no coefficient at the optimum, so leaving them out changes nothing. They
    are judged by singular values of a triangular factor, accurate to rounding; eigenvalues of X'X are only to its root.
    """
    triangle = torch.linalg.qr(X, mode="r")[1]
    _, scales, basis = torch.linalg.svd(triangle, full_matrices=False)
    return basis[: max(int((scales > NULL * scales[0]).sum()), 1)].T.contiguous()


def eigenbasis(rows: Rows, in_memory: bool = True) -> Coordinates:
    """Find the coordinates; `in_memory` holds the rotated rows, otherwise they are rotated as they are streamed."""
    D = rows.width
    exact = replace(rows, dtype=torch.float64)
    shift = torch.zeros(D, dtype=torch.float64, device=rows.device)
    if rows.intercept:
        for X, _, weights in exact.blocks(STREAM_ROWS):
            shift += weights @ X[:, :-1]
        sum_over_ranks(shift)
    # the transformation of a block is (x - shift) / scale: a shift of scaled features moves by shift * scale
    raw_shift = shift if rows.scale is None else shift * rows.scale
    exact = replace(exact, shift=raw_shift if rows.shift is None else rows.shift + raw_shift)
    reduction = None
    if len(rows) < D and not are_dealt():
        reduction, _ = torch.linalg.qr(torch.cat([X[:, :-1] for X, _, _ in exact.blocks(STREAM_ROWS)]).T)
        exact = replace(exact, projection=reduction)
    if in_memory:
        exact = exact.materialise()
    r = exact.width
    # any orthonormal basis is exact, so the moment may be summed in the working precision
    moment = torch.zeros(r, r, dtype=torch.float64, device=rows.device)
    for X, _, weights in exact.blocks(STREAM_ROWS):
        features = X[:, :-1].to(rows.dtype)
        moment += (features.T @ (features * weights.to(rows.dtype)[:, None])).double()
    sum_over_ranks(moment)
    values, vectors = torch.linalg.eigh(moment)
    if in_memory and float(values[0]) < NEARLY_NULL * float(values[-1]) and not are_dealt():
        space = row_space(exact.X[:, :-1])
        values, vectors = torch.linalg.eigh(space.T @ moment @ space)
        vectors = space @ vectors
    projection = vectors if reduction is None else reduction @ vectors
    if in_memory:
        X = exact.X
        for start in range(0, len(X), STREAM_ROWS):
            block = X[start : start + STREAM_ROWS].T
            turned = vectors.T @ block[:-1]
            block[-1 - len(turned) : -1].copy_(turned)
        if vectors.shape[1] < r:
            exact = replace(exact, X=X[:, -1 - vectors.shape[1] :])
        working = exact if rows.dtype == torch.float64 else replace(exact, X=exact.X.to(rows.dtype), dtype=rows.dtype)
    else:
        exact = replace(exact, projection=projection)
        working = replace(exact, dtype=rows.dtype)
    return Coordinates(working, exact, shift, projection, values.clamp_min(0))
