"""The default preconditioner: the inverse of (mean softmax covariance x X'X + l2), which needs no factorisation."""

import torch
from torch import Tensor


class Kronecker:
    """(A x S + l2)^-1 for each of P problems: A (R, R) its mean softmax covariance, S = X'X, in whose
    eigenbasis vectors are given.

    For probabilities that are the same in every row, as at W = 0, it is the inverse Hessian itself (Bohning 1992 bounds
    the Hessian by such a product); at weak penalties it is a rough guess.
    """

    def __init__(self, covariance: Tensor, eigenvalues: Tensor, l2: Tensor, dtype: torch.dtype) -> None:
        self.eigenvalues, self.l2, self.dtype = eigenvalues, l2, dtype
        P, R = len(l2), covariance.shape[-1]
        self.basis = torch.empty(P, R, R, dtype=dtype, device=l2.device)
        self.inverse = torch.empty(P, R, len(eigenvalues) + 1, dtype=dtype, device=l2.device)
        self.update(covariance, torch.arange(P, device=l2.device))

    def update(self, covariance: Tensor, index: Tensor) -> None:
        """Set the covariances (p, R, R) float64, or (1, R, R) shared by all, of the problems at `index`."""
        values, basis = torch.linalg.eigh(covariance)
        values = values.clamp_min(1e-30).clamp(1e-15 * values[..., -1:].clamp_min(1e-15))
        self.basis[index] = basis.to(self.dtype).expand(len(index), -1, -1)
        curvature = values[..., None] * self.eigenvalues + self.l2[index, None, None]
        self.inverse[index, :, :-1] = (1 / curvature).to(self.dtype)
        self.inverse[index, :, -1] = (1 / values).to(self.dtype).expand(len(index), -1)
        if values.shape[-1] > 1:  # the direction that adds a constant to every intercept has no curvature
            self.inverse[index, 0, -1] = 0.0

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        """The inverse times vectors (p, R, D+1) of the problems at `index`."""
        basis = self.basis[index]
        return basis @ (self.inverse[index] * (basis.transpose(1, 2) @ gradient))
