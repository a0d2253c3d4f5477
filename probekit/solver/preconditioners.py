"""The default preconditioner: the inverse of (mean softmax covariance x X'X + l2), which needs no factorisation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kronecker:
    """(A x S + l2)^-1 of P problems, with A (R, R) the mean softmax covariance and S = X'X diagonal in this basis.

    If all rows have the same probabilities, as at W = 0, it is the exact inverse Hessian (Bohning 1992 bounds the
    Hessian by such a product); at weak penalties it is a rough approximation.

    Attributes
    ----------
    basis : (P, R, R) eigenvectors of A, or (1, R, R) of all; inverse : (P, R, D+1) in them
    """

    basis: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, covariance: Tensor, eigenvalues: Tensor, l2: Tensor, dtype: torch.dtype) -> "Kronecker":
        """From covariances (P, R, R), or (1, R, R) for all, the eigenvalues of S, and penalties (P,), all float64."""
        values, basis = torch.linalg.eigh(covariance)
        values = values.clamp_min(1e-30).clamp(1e-15 * values[..., -1:].clamp_min(1e-15))
        inverse = 1 / (values[..., None] * eigenvalues + l2[:, None, None])
        of_b = (1 / values).expand(len(l2), -1)[..., None].clone()
        if values.shape[-1] > 1:  # the direction that adds a constant to every intercept has no curvature
            of_b[:, 0] = 0.0
        return cls(basis.to(dtype), torch.cat([inverse, of_b], dim=2).to(dtype))

    def take(self, index: Tensor) -> "Kronecker":
        """Those of the problems at `index`."""
        return Kronecker(self.basis if len(self.basis) == 1 else self.basis[index], self.inverse[index])

    def solve(self, vectors: Tensor) -> Tensor:
        """The inverses times vectors (P, R, D+1)."""
        return self.basis @ (self.inverse * (self.basis.mT @ vectors))
