"""Coordinates of the solver: centred rows, fewer columns where some depend on others, eigenvectors of X'X.

The l2 penalty does not see rotations, so an orthonormal basis of the row space changes nothing: with more features than
rows a thin QR of X' leaves N columns; columns that depend on others (grey pixels in RGB, dead units) leave likewise.
Otherwise the columns stay as they are for everything that is measured, each with all its digits. Hessian products are
made in the eigenbasis of X'X: there a column is as small as the spread along its direction, and float32 rounds it to
that size. (In mixed columns float32 knows no curvature below 1e-7 of the largest: 10,000 x 256 standardised features
took 15,700 products before, 956 since.) The default preconditioner is diagonal there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.solver.data import STREAM_ROWS, WeightedData

NULL = 1e-12  # an eigenvalue of X'X below this share of the largest may be rounding
NULL_OF_COLUMN = 1e-10  # of a column's square: what may be dropped of it
EPS = torch.finfo(torch.float64).eps  # times N: the error of a mean of N rows, left of a constant column once centred
WORTH_REDUCING = 0.75  # of the columns: fewer than so many are worth a rotation of all rows
HOLD_ENTRIES = 1 << 24  # centred rows of at most so many entries are held a second time for the certificate


@dataclass(frozen=True)
class Coordinates:
    """Centred rows in the solver's columns, z = (x - shift) projection, and the ways between both.

    Attributes
    ----------
    data : rows in the eigenbasis, in the working precision
    exact : rows in solver columns, float64; in memory or streamed, both
    full : centred rows with all their columns, float64; `exact` itself where there is no projection
    shift : (D,) float64
    projection : (D, r) float64 with orthonormal columns, or None where all columns are kept
    eigenvalues (r,), eigenvectors (r, r) : of the weighted X'X in solver columns; vectors None if it is diagonal
    """

    data: WeightedData
    exact: WeightedData
    full: WeightedData
    shift: Tensor
    projection: Tensor | None
    eigenvalues: Tensor
    eigenvectors: Tensor | None

    def rotate(self, theta: Tensor) -> Tensor:
        """Parameters or gradients (P, R, r+1) of solver columns in the eigenbasis."""
        if self.eigenvectors is None:
            return theta
        return torch.cat([theta[..., :-1] @ self.eigenvectors, theta[..., -1:]], dim=-1)

    def unrotate(self, theta: Tensor) -> Tensor:
        """The inverse of `rotate`."""
        if self.eigenvectors is None:
            return theta
        return torch.cat([theta[..., :-1] @ self.eigenvectors.T, theta[..., -1:]], dim=-1)

    def to_full(self, theta: Tensor) -> Tensor:
        """Solver parameters (P, R, r+1) as parameters of the centred rows (P, R, D+1)."""
        if self.projection is None:
            return theta
        return torch.cat([theta[..., :-1] @ self.projection.T, theta[..., -1:]], dim=-1)

    def to_original(self, theta: Tensor) -> Tensor:
        """Parameters of the centred rows (P, R, D+1) as parameters of the rows as given."""
        return torch.cat([theta[..., :-1], theta[..., -1:] - (theta[..., :-1] @ self.shift)[..., None]], dim=-1)

    def from_original(self, theta: Tensor) -> Tensor:
        """The inverse of `to_original`."""
        return torch.cat([theta[..., :-1], theta[..., -1:] + (theta[..., :-1] @ self.shift)[..., None]], dim=-1)

    def gradient_to_original(self, gradient: Tensor) -> Tensor:
        """A gradient in centred coordinates as one with respect to the original coefficients and intercept."""
        return torch.cat([gradient[..., :-1] + gradient[..., -1:] * self.shift, gradient[..., -1:]], dim=-1)


def find_coordinates(
    data: WeightedData, in_memory: bool = True, reduce: bool = True, eigen: bool = True
) -> Coordinates:
    """Centre the rows and find eigenvalues; `in_memory` holds the rows, otherwise they are streamed from their source.

    `reduce` False keeps all columns, dependent or not; without `eigen` there are no eigenvalues, and only more features
    than rows are reduced.
    """
    exact = replace(data, dtype=torch.float64)
    shift = torch.zeros(data.width, dtype=torch.float64, device=data.device)
    if data.intercept:
        for X, _, weights in exact.blocks(STREAM_ROWS):
            shift += weights @ X[:, :-1]
        data.sum_over_ranks(shift)
    # a block is (x - shift) / scale: a shift of scaled features moves by shift * scale
    raw_shift = shift if data.scale is None else shift * data.scale
    full = replace(exact, shift=raw_shift if data.shift is None else data.shift + raw_shift)
    if in_memory and len(data) * data.width <= HOLD_ENTRIES:
        full = full.materialise()
    reduce, projection, exact = reduce and not data.sharded, None, full
    if reduce and len(data) < data.width:
        projection = torch.linalg.qr(torch.cat([X[:, :-1] for X, _, _ in full.blocks(STREAM_ROWS)]).T)[0]
        exact = _project(full, projection, in_memory)
    elif in_memory and not full.ready:
        exact = full = full.materialise()
    if not eigen:
        return Coordinates(exact, exact, full, shift, projection, torch.empty(0), None)
    moment = _moment(exact, data.dtype)
    values, vectors = torch.linalg.eigh(moment)
    if reduce and float(values[len(values) // 4]) < 10 * torch.finfo(data.dtype).eps * float(values[-1]):
        moment = _moment(exact, torch.float64)
        values, vectors = torch.linalg.eigh(moment)
        kept = values > NULL * values[-1]
        dropped = vectors[:, ~kept].square() @ values[~kept].clamp_min(0)
        own = moment.diagonal()
        harmless = dropped <= NULL_OF_COLUMN * own
        if projection is None:
            # a constant column has nothing to lose: rounding alone gives it a share of the dropped directions
            harmless |= own <= (data.largest_share * EPS * shift).square()
        harmless = bool(harmless.all())
        if int(kept.sum()) <= WORTH_REDUCING * len(values) and bool(kept.any()) and harmless:
            values, basis = values[kept], vectors[:, kept]
            projection = basis if projection is None else projection @ basis
            exact = _project(full, projection, in_memory)
            vectors = torch.empty(0)
    if not vectors.numel():
        working = exact
        if data.dtype != torch.float64:
            working = replace(exact, X=exact.X.to(data.dtype) if exact.ready else exact.X, dtype=data.dtype)
        return Coordinates(working, exact, full, shift, projection, values.clamp_min(0), None)
    basis = vectors if projection is None or exact.ready else projection @ vectors
    working = _project(exact if exact.ready else full, basis, in_memory, data.dtype)
    return Coordinates(working, exact, full, shift, projection, values.clamp_min(0), vectors)


def plain_coordinates(data: WeightedData) -> Coordinates:
    """Centred rows in their own columns, float64, with the columns' variances where the eigenvalues would stand."""
    plain = find_coordinates(data, reduce=False, eigen=False)
    exact = plain.exact
    variances = exact.weights @ exact.X[:, :-1].square()
    return replace(plain, eigenvalues=variances)


def _moment(exact: WeightedData, dtype: torch.dtype) -> Tensor:
    """Weighted X'X (r, r), summed in `dtype`."""
    moment = torch.zeros(exact.width, exact.width, dtype=torch.float64, device=exact.device)
    for X, _, weights in exact.blocks(STREAM_ROWS):
        features = X[:, :-1].to(dtype)
        moment += (features.T @ (features * weights.to(dtype)[:, None])).double()
    exact.sum_over_ranks(moment)
    return moment


def _project(
    full: WeightedData, projection: Tensor, in_memory: bool, dtype: torch.dtype = torch.float64
) -> WeightedData:
    """Rows (held or streamed, float64) in the columns of a projection (D, r), in `dtype`."""
    if full.ready:
        X = torch.empty(projection.shape[1] + 1, len(full), dtype=dtype, device=full.device)
        for start in range(0, len(full), STREAM_ROWS):
            rows = full.X[start : start + STREAM_ROWS]
            X[:-1, start : start + STREAM_ROWS] = projection.T @ rows[:, :-1].T
            X[-1, start : start + STREAM_ROWS] = rows[:, -1]
        return replace(full, X=X.T, dtype=dtype)
    projected = replace(full, projection=projection, dtype=dtype)
    return projected.materialise() if in_memory else projected
