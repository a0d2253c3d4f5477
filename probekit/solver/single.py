"""One penalty on rows in memory, in NumPy: Newton's method in the columns as given, certified as it ends.

A path shares an eigenbasis, factors and passes among its penalties; a single fit has nothing to share, so that here
neither rows are copied in float64 nor bases found. Gradients, losses and the bound are float64; Newton steps come from
the whole Hessian where it is small, else from conjugate gradients on float32 rows. What this method does not certify is
left to `solve`. The bound is that of `certificate`, with the rounding of rows that are centred as they are multiplied.

Shapes: N rows, D columns, R coefficient rows (1 if K = 2), theta (R, D+1), logits (R, N).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from torch import Tensor

from probekit.solver import dense
from probekit.solver.certificate import GRADIENT_RATIO
from probekit.solver.data import WeightedData

Array = NDArray[Any]

EPS = float(np.finfo(np.float64).eps)
BLOCK = 1 << 17  # logits that are worked on at a time: half a core's cache in float32
WIDE = 8  # a block has at most so many times more entries of rows
MOST_ENTRIES = 1 << 25  # of logits, and of rows copied to float32
MOST_FLOPS = 2e6  # of a whole Hessian
STEPS = 25  # of Newton's method
PRODUCTS = 250  # of conjugate gradients, all steps together
HALVINGS = 8
RTOL = 0.05  # of r' M r at the start: what conjugate gradients of a step far from the optimum may leave
STEP_SHARE = 0.1  # of the tolerance: what those of the last step may leave of the gradient bound
INTERCEPT_STEPS = 4
ENOUGH_OF_INTERCEPTS = 1e-6  # a residual that Newton's next step makes too small to count
FLOAT32_LOSS = 1e-5  # relative: rounding of losses by float32 rows


@dataclass(frozen=True)
class Fit:
    """A certified probe: theta (R, D+1) of the rows as given, figures of `Certificate`, passes over the rows."""

    theta: Array
    figures: dict[str, float]
    n_iter: int
    method: str


@dataclass
class _Point:
    """A probe and what one pass measured at it, in float64 or by the float32 rows.

    p holds blocks (R, n) of probabilities, or p (1 - p) if R = 1.
    """

    theta: Array
    loss: float
    gradient: Array
    gap: float
    p: list[Array]
    exact: bool


def fit_one(data: WeightedData, l2: float, tol: float, max_iter: int, start: Array | None = None) -> Fit | None:
    """The probe of one penalty, or None where this method is not meant for the rows or does not certify a fit.

    Parameters
    ----------
    data : rows as `solve` takes them
    l2 : penalty of the mean loss
    tol : relative objective gap at most
    max_iter : Newton steps at most
    start : (R, D+1) of the rows as given, None for the zero probe
    """
    X, N, R = data.X, len(data), data.n_coef_rows
    if isinstance(X, Tensor) and X.device.type == "cpu" and X.dtype in (torch.float16, torch.float32, torch.float64):
        X = X.numpy()
    if not isinstance(X, np.ndarray) or X.dtype.kind != "f" or data.device.type != "cpu" or data.sharded:
        return None
    if max(R * N, X.size) > MOST_ENTRIES:
        return None
    with np.errstate(all="ignore"):
        problem = _Single(data, X, l2, tol)
        return problem.fit(min(max_iter, STEPS), start) if problem.usable else None


class _Single:
    def __init__(self, data: WeightedData, X: Array, l2: float, tol: float) -> None:
        self.of_intercepts: Array | None = None
        self.X, self.y, self.w, self.R = X, data.y.numpy(), data.weights.numpy(), data.n_coef_rows
        self.l2, self.tol, self.intercept = l2, tol, data.intercept
        (self.N, self.D), R = X.shape, self.R
        self.shares = np.bincount(self.y, self.w, minlength=data.n_classes)
        self.usable = bool(self.shares.min() > 0)
        step = max(BLOCK // max(R, self.D // WIDE), 16)
        self.blocks = [slice(start, start + step) for start in range(0, self.N, step)]
        self.inverse = None if data.scale is None else 1 / data.scale.numpy()
        shift = np.zeros(self.D) if data.shift is None else data.shift.numpy()
        self.centre = self._mean() if self.intercept else shift
        self.moved = self.centre - shift
        if self.inverse is not None:
            self.moved = self.moved * self.inverse
        columns = R * (self.D + 1)
        self.direct = columns <= dense.MOST_COLUMNS and self.N * columns**2 <= MOST_FLOPS
        self._measure_rows()
        self.log_least = float(-np.log(self.shares.min()))
        self.rows = np.arange(step)
        self.sign = 1.0 - 2.0 * self.y

    def _mean(self) -> Array:
        if self.X.dtype == np.float64:
            return self.w @ self.X
        return sum((self.w[rows] @ self.X[rows].astype(np.float64) for rows in self.blocks), np.zeros(self.D))

    def _measure_rows(self) -> None:
        """Norms of the rows, variances of the columns, and centred rows: float64 if few, else float32."""
        offset = self.centre if self.inverse is None else self.centre * self.inverse
        few = self.direct
        self.held = np.empty((self.N, self.D + 1), np.float64 if few else np.float32)
        self.held[:, -1] = 1.0 if self.intercept else 0.0
        self.weights = self.w.astype(self.held.dtype)
        self.variances, squares = np.zeros(self.D), np.empty(self.N)
        for rows in self.blocks:
            block = self.X[rows] - self.centre
            if self.inverse is not None:
                block *= self.inverse
            self.held[rows, :-1] = block
            block = np.square(self.held[rows, :-1])
            squares[rows] = block.sum(axis=1)
            self.variances += self.weights[rows] @ block
        self.norms = np.sqrt(squares * (1 + 1e-3) + 1.0)
        self.longest = float(np.sqrt(2) * self.norms.max())
        if not few:  # centred as they are multiplied: rounding is of the size of the rows as given
            self.norms += 2 * np.sqrt(offset @ offset)

    # ---- measuring
    def _block(self, rows: slice, exact: bool) -> Array:
        """The rows that logits and gradients are products of: float64 as given, or held."""
        if self.direct or not exact:
            return self.held[rows, :-1]
        return self.X[rows].astype(np.float64, copy=False)

    def _times(self, W: Array, X: Array) -> Array:
        """W X' (R, n)."""
        return (X @ W[0])[None] if self.R == 1 else W @ X.T

    def _of_block(self, W: Array, exact: bool) -> tuple[Array, Array]:
        """Coefficients and constants (R, 1) of logits by the rows of `_block`."""
        if self.direct or not exact:
            return W.astype(self.held.dtype), np.zeros((self.R, 1), self.held.dtype)
        W = W if self.inverse is None else W * self.inverse
        return W, -(W @ self.centre)[:, None]

    def _residuals(self, z: Array, b: Array, rows: slice) -> tuple[Array, Array, Array, Array]:
        """Logits (R, n) without intercepts b into losses (n,), residuals p - onehot(y) (R, n), probability missed by the
        label (n,), and p as in `_Point`.
        """
        z = z + b[:, None].astype(z.dtype)
        if self.R == 1:
            sign = self.sign[rows]
            margin = z[0] * sign  # by which the wrong class leads
            small = np.exp(-np.abs(margin))
            losses = np.maximum(margin, 0) + np.log1p(small)
            missed = np.where(margin > 0, 1, small) / (1 + small)
            return losses, (missed * sign)[None], missed, (small / np.square(1 + small))[None]
        label = self.y[rows], self.rows[: z.shape[1]]
        own = z[label]
        z[label] = -np.inf
        top = np.maximum(z.max(axis=0), own)
        z -= top
        np.exp(z, out=z)
        others = z.sum(axis=0)
        own -= top
        mine = np.exp(own)
        total = mine + others
        losses = np.where(own == 0, np.log1p(others), np.log(total) - own)
        z /= total
        p = z.astype(self.held.dtype)
        p[label] = mine / total
        missed = others / total
        z[label] = -missed
        return losses, z, missed, p

    def evaluate(self, theta: Array, exact: bool = True, solve_intercept: bool = False) -> _Point:
        """Measure a probe, its intercepts moved to their optimum first if asked."""
        W, b = theta[:, :-1], theta[:, -1]
        exact |= self.direct
        coef, constant = self._of_block(W, exact)
        linear = None
        if solve_intercept and self.intercept:
            linear = [self._times(coef, self._block(rows, exact)) + constant for rows in self.blocks]
            theta = np.column_stack([W, self._solved_intercepts(linear, b)])
            b = theta[:, -1]
        gradient, kept, loss, noise = np.zeros_like(theta), [], 0.0, 0.0
        for i, rows in enumerate(self.blocks):
            X, w = self._block(rows, exact), self.w[rows]
            z = self._times(coef, X) + constant if linear is None else linear[i]
            losses, residuals, missed, p = self._residuals(z, b, rows)
            kept.append(p)
            loss += float(w @ losses)
            noise += float(w @ (missed * self.norms[rows]))
            residuals *= w.astype(residuals.dtype, copy=False)
            gradient[:, -1] += residuals.sum(axis=1)
            gradient[:, :-1] += residuals @ X
        if exact and not self.direct:
            gradient[:, :-1] -= gradient[:, -1:] * self.centre
            if self.inverse is not None:
                gradient[:, :-1] *= self.inverse
        gradient[:, :-1] += self.l2 * W
        if not self.intercept:
            gradient[:, -1] = 0.0
        size = float(np.sqrt(np.vdot(W, W)))
        loss += 0.5 * self.l2 * size**2
        if not self.direct:  # what the rounding of logits makes of residuals
            noise *= 1 + self.longest * size
        noise = 8 * EPS * (noise + self.l2 * size)  # 8 roundings of each row's term
        gap = self._bound(theta, gradient, size, noise) / max(loss, 1e-300)
        return _Point(theta, loss, gradient, gap, kept, exact)

    def _solved_intercepts(self, linear: list[Array], b: Array) -> Array:
        """The best intercepts at logits without any: Newton's method, a Hessian serving while steps gain a digit."""
        before = np.inf
        for _ in range(INTERCEPT_STEPS):
            of_b, floor, kept = np.zeros(self.R), 0.0, []
            for rows, z in zip(self.blocks, linear, strict=True):
                _, residuals, missed, p = self._residuals(z, b, rows)
                of_b += residuals @ self.w[rows]
                floor += float(self.w[rows] @ missed)
                kept.append(p)
            size = float(np.abs(of_b).max())
            if size <= 4 * EPS * floor or not size < before:
                break
            if self.of_intercepts is None or size > 0.1 * before:
                self.of_intercepts = self._hessian_of_intercepts(kept)
            _, step, failed = dposv(self.of_intercepts, of_b)
            if failed:
                break
            b = b - step * min(1.0, 4 / max(np.abs(step).max(), 1e-300))
            if size < ENOUGH_OF_INTERCEPTS:
                break
            before = size
        return b

    def _bound(self, theta: Array, gradient: Array, size: float, noise: float) -> float:
        """The duality gap bound, see `certificate`."""
        of_W = float(np.sqrt(np.vdot(gradient[:, :-1], gradient[:, :-1]))) + noise
        b, of_b = theta[:, -1], np.abs(gradient[:, -1])
        e = float(of_b[0] if self.R == 1 else of_b.sum() / 2)
        spread = float(abs(b[0]) if self.R == 1 else np.ptp(b))
        return (of_W + self.longest * e) ** 2 / (2 * self.l2) + e * (spread + self.log_least + self.longest * size)

    def _hessian_of_intercepts(self, p: list[Array]) -> Array:
        """(R, R); the class with most curvature keeps its intercept."""
        if self.R == 1:
            of_b = sum(float(own[0] @ self.w[rows]) for own, rows in zip(p, self.blocks, strict=True))
            return np.array([[max(of_b, 1e-280)]])
        covariance = np.zeros((self.R, self.R))
        for own, rows in zip(p, self.blocks, strict=True):
            half = own * np.sqrt(self.weights[rows])
            covariance -= half @ half.T
        np.fill_diagonal(covariance, 0.0)
        np.fill_diagonal(covariance, -covariance.sum(axis=1))
        most = int(covariance.diagonal().argmax())
        covariance[most, most] *= 2
        covariance.ravel()[:: self.R + 1] *= 1 + 1e-14
        return covariance

    # ---- Newton's method
    def fit(self, max_steps: int, start: Array | None) -> Fit | None:
        """Newton steps until the bound is at most `tol` of the loss."""
        theta = np.zeros((self.R, self.D + 1))
        if self.intercept:
            logs = np.log(self.shares)
            theta[:, -1] = logs[1] - logs[0] if self.R == 1 else logs - logs.mean()
        at = self.evaluate(theta)  # in float64: what later gradients are compared with
        at_zero = float(np.abs(self._of_given(at.gradient)).max())
        if start is not None:
            theta = start.copy()
            theta[:, -1] += start[:, :-1] @ self.moved
            near = self.evaluate(theta, solve_intercept=True)
            at = near if near.loss < at.loss else at
        passes, products = 1, 0
        for _ in range(max_steps):
            limit = float(np.abs(self._of_given(at.gradient)).max())
            if at.gap <= self.tol and not at.exact:
                at = self.evaluate(at.theta, solve_intercept=True)
                passes += 1
            if at.gap <= self.tol and limit <= max(GRADIENT_RATIO * at_zero, 1e-14):
                return self._certified(at, at_zero, passes + products)
            if not np.isfinite(at.loss) or products > PRODUCTS:
                return None
            step, decrement, spent, last = self._newton_step(at)
            products += spent
            length = 1.0
            for _ in range(HALVINGS):
                trial = self.evaluate(at.theta - length * step, last, last)
                passes += 1
                rounding = dense.ROUNDING if trial.exact and at.exact else FLOAT32_LOSS
                if trial.loss <= at.loss * (1 + rounding) - dense.SUFFICIENT_DECREASE * length * decrement:
                    break
                length /= 2
            else:
                return None
            if not trial.gap < at.gap and decrement <= 1e-12 * at.loss:
                return None  # nothing is left to gain but rounding
            at = trial
        return None

    def _newton_step(self, at: _Point) -> tuple[Array, float, int, bool]:
        """Step (R, D+1), decrement, products, and whether the certificate may be met after it."""
        if not self.direct:
            return self._conjugate_gradients(at)
        given = dense.DenseProblem(self.held, self.y, self.w, self.R, self.intercept)
        H = given.hessian(np.concatenate(at.p, axis=1).T, self.l2)
        _, step, failed = dposv(H, at.gradient.ravel())
        step = step.reshape(at.gradient.shape)
        return (np.full_like(step, np.nan) if failed else step), float(np.vdot(step, at.gradient)), 1, False

    def _conjugate_gradients(self, at: _Point) -> tuple[Array, float, int, bool]:
        """Newton's step until the residual is what the quadratic model, or the certificate, can use."""
        weighted = [p * self.weights[rows] for p, rows in zip(at.p, self.blocks, strict=True)]
        scale = float(np.abs(at.gradient).max())
        curvature = np.zeros(self.R)
        for own, p in zip(weighted, at.p, strict=True):
            curvature += own.sum(axis=1) if self.R == 1 else own.sum(axis=1) - np.einsum("kn,kn->k", own, p)
        M = np.empty_like(at.gradient)
        M[:, :-1] = 1 / (curvature[:, None] * self.variances + self.l2)
        M[:, -1] = 1 / np.maximum(curvature, 1e-30)
        r = at.gradient / scale
        step, total, spent = np.zeros_like(r), 0.0, 0
        z = M * r
        rz = start = float(np.vdot(r, z))
        d = z
        enough = 2 * self.l2 * STEP_SHARE * self.tol * at.loss / scale**2
        while spent < PRODUCTS:
            spent += 1
            Hd = self._product(d.astype(np.float32), at.p, weighted)
            Hd[:, :-1] += self.l2 * d[:, :-1]
            curved = float(np.vdot(d, Hd))
            if not (curved > 0 and rz > 0):
                break
            alpha = rz / curved
            step += alpha * d
            total += alpha * rz
            r = r - alpha * Hd
            z = M * r
            new = float(np.vdot(r, z))
            d, rz = z + (new / rz) * d, new
            left = float(np.vdot(r[:, :-1], r[:, :-1]))
            if rz <= min(max(total * scale**2 / at.loss, 1e-9), RTOL) * start or left <= enough:
                break
        return step * scale, total * scale**2, spent, left <= 2 * enough

    def _product(self, d: Array, p: list[Array], weighted: list[Array]) -> Array:
        """Hessian of the mean loss times d (R, D+1) float32; `weighted` is p times the rows' weights."""
        product = np.zeros(d.shape)
        for i, rows in enumerate(self.blocks):
            X = self.held[rows]
            v = self._times(d, X)
            if self.R > 1:
                # relative to the label's entry, the mean is as small as the doubt about the row, with all its digits
                v -= v[self.y[rows], self.rows[: len(X)]]
                v -= np.einsum("kn,kn->n", p[i], v)
            v *= weighted[i]
            product += v @ X
        return product

    # ---- what is returned
    def _of_given(self, gradient: Array) -> Array:
        """A gradient with respect to coefficients and intercepts of the rows as given."""
        return np.column_stack([gradient[:, :-1] + gradient[:, -1:] * self.moved, gradient[:, -1]])

    def _certified(self, at: _Point, at_zero: float, passes: int) -> Fit:
        theta = at.theta.copy()
        theta[:, -1] -= theta[:, :-1] @ self.moved
        grad_max = float(np.abs(self._of_given(at.gradient)).max())
        figures = {
            "loss": at.loss,
            "grad_max": grad_max,
            "grad_rel": grad_max / max(at_zero, 1e-300),
            "gap_bound": at.gap * at.loss,
            "gap": at.gap,
            "intercept_residual": float(np.abs(at.gradient[:, -1]).max()),
        }
        if self.R > 1:
            theta -= theta.mean(axis=0)
        method = "whole Hessians" if self.direct else "conjugate gradients in the columns as given"
        return Fit(theta, figures, passes, method)
