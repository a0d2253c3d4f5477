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
from probekit.solver.certificate import GRADIENT_RATIO, bound_of_one
from probekit.solver.data import WeightedData

Array = NDArray[Any]

EPS = float(np.finfo(np.float64).eps)
BLOCK = 1 << 17  # logits that are worked on at a time: half a core's cache in float32
WIDE = 8  # a block has at most so many times more entries of rows
MOST_ENTRIES = 1 << 25  # of logits, and of rows copied to float32
MOST_FLOPS = 2e6  # of a whole Hessian
STEPS = 25  # of Newton's method
PRODUCTS = 250  # of conjugate gradients, all steps together
RAY_STEPS = 8
FLAT, FLAT_OF_MANY = 0.1, 0.4  # of the slope at the start of a step, where it ends; many classes make a look dearer
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
class _Measured:
    """Losses and residuals at logits (lists of blocks): the mean loss, Sum of w |x| times the probability missed by
    labels, residuals p - onehot(y) (R, n), and p (R, n), or p (1 - p) if R = 1.
    """

    logits: list[Array]
    loss: float
    missed: float
    residuals: list[Array]
    p: list[Array]


@dataclass
class _Point:
    """A probe with the penalised loss, its gradient and the relative gap bound; `exact` if float64 from the rows."""

    theta: Array
    loss: float
    gradient: Array
    gap: float
    at: _Measured
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
        self.flat = FLAT if R == 1 else FLAT_OF_MANY
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

    def _residuals(self, z: Array, rows: slice) -> tuple[Array, Array, Array, Array]:
        """Logits (R, n) into losses (n,), residuals (R, n), probability missed by the label (n,), and p."""
        if self.R == 1:
            sign = self.sign[rows]
            margin = z[0] * sign  # by which the wrong class leads
            small = np.exp(-np.abs(margin))
            losses = np.maximum(margin, 0) + np.log1p(small)
            missed = np.where(margin > 0, 1, small) / (1 + small)
            return losses, (missed * sign)[None], missed, (small / np.square(1 + small))[None]
        label = self.y[rows], self.rows[: z.shape[1]]
        own = z[label]
        z = z.copy()
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

    def _measure(self, logits: list[Array]) -> _Measured:
        loss, noise, residuals, kept = 0.0, 0.0, [], []
        for rows, z in zip(self.blocks, logits, strict=True):
            losses, residual, missed, p = self._residuals(z, rows)
            loss += float(self.w[rows] @ losses)
            noise += float(self.w[rows] @ (missed * self.norms[rows]))
            residuals.append(residual)
            kept.append(p)
        return _Measured(logits, loss, noise, residuals, kept)

    def evaluate(self, theta: Array, solve_intercept: bool = False) -> _Point:
        """Measure a probe in float64, its intercepts moved to their optimum first if asked."""
        W, b = theta[:, :-1], theta[:, -1:]
        if not self.direct:
            W = W if self.inverse is None else W * self.inverse
            b = b - (W @ self.centre)[:, None]
        at = self._measure([self._times(W, self._block(rows, exact=True)) + b for rows in self.blocks])
        if solve_intercept and self.intercept:
            at, moved = self._solve_intercepts(at)
            theta = theta.copy()
            theta[:, -1] += moved
        return self._point(theta, at, exact=True)

    def _point(self, theta: Array, at: _Measured, exact: bool) -> _Point:
        W, gradient = theta[:, :-1], np.zeros_like(theta)
        for rows, residuals in zip(self.blocks, at.residuals, strict=True):
            weighted = residuals * self.w[rows].astype(residuals.dtype, copy=False)
            gradient[:, -1] += weighted.sum(axis=1)
            gradient[:, :-1] += weighted @ self._block(rows, exact)
        if exact and not self.direct:
            gradient[:, :-1] -= gradient[:, -1:] * self.centre
            if self.inverse is not None:
                gradient[:, :-1] *= self.inverse
        gradient[:, :-1] += self.l2 * W
        if not self.intercept:
            gradient[:, -1] = 0.0
        size = float(np.sqrt(np.vdot(W, W)))
        loss = at.loss + 0.5 * self.l2 * size**2
        # 8 roundings of each row's term, and what the rounding of logits makes of residuals
        noise = 8 * EPS * (at.missed * (1 + self.longest * size) + self.l2 * size)
        bound = bound_of_one(theta, gradient, self.l2, self.longest, self.log_least, noise)
        return _Point(theta, loss, gradient, bound / max(loss, 1e-300), at, exact)

    def _solve_intercepts(self, at: _Measured) -> tuple[_Measured, Array]:
        """Newton's method for the intercepts, a Hessian serving while steps gain a digit; also how far they moved."""
        before, moved = np.inf, np.zeros(self.R)
        for _ in range(INTERCEPT_STEPS):
            of_b = sum((r @ self.w[rows] for r, rows in zip(at.residuals, self.blocks, strict=True)), np.zeros(self.R))
            size = float(np.abs(of_b).max())
            if size <= 4 * EPS * at.missed or not size < before:
                break
            if self.of_intercepts is None or size > 0.1 * before:
                self.of_intercepts = self._hessian_of_intercepts(at.p)
            _, step, failed = dposv(self.of_intercepts, of_b)
            if failed:
                break
            step *= min(1.0, 4 / max(np.abs(step).max(), 1e-300))
            moved, before = moved - step, size
            at = self._measure([z - step[:, None] for z in at.logits])
            if size < ENOUGH_OF_INTERCEPTS:
                break
        return at, moved

    def _descend(self, here: _Point, step: Array, decrement: float) -> _Point | None:
        """The point where the slope along -step has fallen to `FLAT` of its start, by the held rows; None if none is.

        A ray costs one product, as a step of length one does. Nearly separated rows need steps of several lengths
        (each of length one divides the loss by e), many classes need short ones at first.
        """
        down = -step.astype(self.held.dtype)
        logits = [z.astype(self.held.dtype, copy=False) for z in here.at.logits]
        change = [self._times(down, self.held[rows]) for rows in self.blocks]
        of_W, square = -float(np.vdot(here.theta[:, :-1], step[:, :-1])), float(np.vdot(step[:, :-1], step[:, :-1]))
        penalty = 0.5 * self.l2 * float(np.vdot(here.theta[:, :-1], here.theta[:, :-1]))
        low, high, of_low, of_high = 0.0, np.inf, -decrement, np.inf
        t = min(1.0, here.loss / decrement)
        for _ in range(RAY_STEPS):
            at = self._measure([z + t * dz for z, dz in zip(logits, change, strict=True)])
            loss = at.loss + penalty + self.l2 * t * (of_W + 0.5 * t * square)
            slope = self.l2 * (of_W + t * square)
            for rows, residuals, dz in zip(self.blocks, at.residuals, change, strict=True):
                slope += float(self.w[rows] @ np.einsum("kn,kn->n", residuals, dz))
            falls = loss <= here.loss * (1 + FLOAT32_LOSS)
            if falls and abs(slope) <= self.flat * decrement:
                return self._point(here.theta - t * step, at, exact=False)
            if falls and slope < 0:
                low, of_low = t, slope
            else:
                high, of_high = t, slope
            if high == np.inf:
                t *= min(max(decrement / (decrement + slope), 2.0), 4.0)
            else:
                share = of_low / (of_low - of_high) if of_high > 0 else 0.5
                t = low + (high - low) * min(max(share, 0.1), 0.9)
        return self._point(here.theta - t * step, at, exact=False) if falls else None

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
        at = self.evaluate(theta)
        at_zero = float(np.abs(self._of_given(at.gradient)).max())
        self.least = max(GRADIENT_RATIO * at_zero, 1e-14)
        if start is not None:
            theta = start.copy()
            theta[:, -1] += start[:, :-1] @ self.moved
            near = self.evaluate(theta, solve_intercept=True)
            at = near if near.loss < at.loss else at
        passes, products, last = 1, 0, False
        for _ in range(max_steps):
            if at.gap <= self.tol and not at.exact:
                at = self.evaluate(at.theta, solve_intercept=not self.direct)
                passes += 1
            if at.gap <= self.tol and np.abs(self._of_given(at.gradient)).max() <= self.least:
                return self._certified(at, at_zero, passes + products)
            if not np.isfinite(at.loss) or products > PRODUCTS:
                return None
            step, decrement, spent, last = self._newton_step(at)
            products, passes = products + spent, passes + 1
            if not decrement > 0:
                return None
            if self.R > 1:  # what all classes share moves no probability and costs penalty
                step -= step.mean(axis=0)
            new = self.evaluate(at.theta - step, solve_intercept=True) if last else None
            if new is None or not new.loss <= at.loss * (1 + (dense.ROUNDING if at.exact else FLOAT32_LOSS)):
                new = self._descend(at, step, decrement)
            if new is None or (not new.gap < at.gap and decrement <= 1e-12 * at.loss):
                return None
            at = new
        return None

    def _newton_step(self, at: _Point) -> tuple[Array, float, int, bool]:
        """Step (R, D+1), decrement, products, and whether the certificate may be met after it."""
        if not self.direct:
            return self._conjugate_gradients(at)
        given = dense.DenseProblem(self.held, self.y, self.w, self.R, self.intercept)
        H = given.hessian(np.concatenate(at.at.p, axis=1).T, self.l2)
        _, step, failed = dposv(H, at.gradient.ravel())
        step = step.reshape(at.gradient.shape)
        return (np.full_like(step, np.nan) if failed else step), float(np.vdot(step, at.gradient)), 1, False

    def _conjugate_gradients(self, at: _Point) -> tuple[Array, float, int, bool]:
        """Newton's step until the residual is what the quadratic model, or the certificate, can use."""
        weighted = [p * self.weights[rows] for p, rows in zip(at.at.p, self.blocks, strict=True)]
        scale = float(np.abs(at.gradient).max())
        curvature = np.zeros(self.R)
        for own, p in zip(weighted, at.at.p, strict=True):
            curvature += own.sum(axis=1) if self.R == 1 else own.sum(axis=1) - np.einsum("kn,kn->k", own, p)
        M = np.empty_like(at.gradient)
        M[:, :-1] = 1 / (curvature[:, None] * self.variances + self.l2)
        M[:, -1] = 1 / np.maximum(curvature, 1e-30)
        r = at.gradient / scale
        step, total, spent = np.zeros_like(r), 0.0, 0
        z = M * r
        rz = start = float(np.vdot(r, z))
        d = z
        spread = float(self.variances.sum())
        enough = 2 * self.l2 * STEP_SHARE * self.tol * at.loss / scale**2
        while spent < PRODUCTS:
            spent += 1
            Hd = self._product(d.astype(np.float32), at.at.p, weighted)
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
            # what is left of the intercepts' gradient moves that of W once they are solved
            left = float(np.vdot(r[:, :-1], r[:, :-1]) + spread * np.vdot(r[:, -1], r[:, -1]))
            small = left <= enough and np.abs(r).max() <= 0.5 * self.least / scale
            if rz <= min(max(total * scale**2 / at.loss, 1e-9), RTOL) * start or small:
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
