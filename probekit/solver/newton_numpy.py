"""Newton's method in NumPy on rows in memory, for small problems, and for one or two penalties of any size.

Small problems are solved with full Hessians on centred float64 rows, along the path from strong to weak penalties. For
one or two penalties of a larger problem, computing a basis or factors would not pay off: gradients, losses and the
bound are evaluated on the original rows with implicit centring, and steps come from conjugate gradients on float32
rows. NumPy is used because its calls have less overhead than torch's; `certificate` and `mean_loss` accept both.

Shapes: N rows, c columns and a last one of ones, R coefficient rows (1 if K = 2), theta (R, c+1), logits (R, N).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from torch import Tensor

from probekit.solver.certificate import GRADIENT_RATIO, Bound, Certified, divergences, move, prior_intercept
from probekit.solver.continuation import LEAST_RATIO, RTOL, STEP_SHARE, lagrange
from probekit.solver.data import WeightedData
from probekit.solver.mean_loss import of_label, regular_intercepts, residuals_
from probekit.solver.memory_plan import whole_columns

Array = NDArray[Any]

EPS = float(np.finfo(np.float64).eps)
MOST_COLUMNS = 320  # of a whole Hessian, where that is the fastest method
PATH_FLOPS, FEW_FLOPS = 4e7, 2e6  # of a whole Hessian, likewise: in a path, and (with its basis) for few penalties
FEW_PENALTIES = 2
BLOCK = 1 << 17  # logits in a block of rows: half a core's cache in float32
WIDE = 8  # entries of X in a block, at most, over those of its logits
MOST_ENTRIES = 1 << 25  # of logits, and of X copied to float32
STEPS, MOST_STEPS = 25, 500  # Newton steps from one start, and on the way to a weak penalty
PRODUCTS = 250  # of conjugate gradients, all steps together
RAY_STEPS = 30
FAR = 0.3  # decrement over loss, above which a step that follows such a step is along one direction
FLAT, FLAT_OF_MANY = 0.1, 0.4  # of its start, to which a line search brings the slope; the second for many classes
INTERCEPT_STEPS = 4
ENOUGH_OF_INTERCEPTS = 1e-6  # gradient of the intercepts at which one more Newton step is the last
ROUNDING = {np.dtype(np.float64): 1e-14, np.dtype(np.float32): 1e-5}  # of losses by held rows, relative
WAY = 10.0  # ratio between the penalties on the way to one that cannot be reached from its start
ROUGH = 1e-2  # relative gap to which those are solved


def fit_in_numpy(data: WeightedData, l2s: Array, tol: float, max_iter: int) -> tuple[Certified, str] | None:
    """Probes of penalties (P,), weak to strong, and the method; None if this method does not apply to the rows.

    One or two penalties of a large problem are returned only if all are certified.
    """
    few, columns = len(l2s) <= FEW_PENALTIES, whole_columns(data)
    if columns == math.inf:
        return None
    flops = len(data) * columns**2 if columns <= MOST_COLUMNS else math.inf
    with_basis = flops + (4 * data.width * len(data) ** 2 if data.width > len(data) else 0)
    held = max(data.n_coef_rows, data.width) * len(data)
    if few and with_basis > FEW_FLOPS and max_iter > 1 and held <= MOST_ENTRIES:
        X = data.X
        if isinstance(X, Tensor) and X.dtype in (torch.float16, torch.float32, torch.float64):
            X = X.numpy()
        if isinstance(X, np.ndarray) and X.dtype.kind == "f":
            with np.errstate(all="ignore"):  # the squares overflow in float32, so use the path solver
                problem = NumpyNewton(data, tol, X)
            found = None if problem.bound.without.any() else problem.follow(l2s, min(max_iter, STEPS))
            if found is not None and found.converged(tol).all():
                return found, "each penalty alone; conjugate gradients in the columns as given"
    if flops > PATH_FLOPS:
        return None
    return NumpyNewton(data, tol).follow(l2s, max_iter), "one penalty after the other; whole Hessians"


@dataclass
class _Measured:
    """From blocks of logits (R, n): the mean loss, sums (2,) of w |x| (1 - p_y) and w (1 - p_y), residuals
    p - onehot(y) (R, n), and p (R, n), or p (1 - p) if R = 1.
    """

    logits: list[Array]
    loss: float
    missed: Array
    residuals: list[Array]
    p: list[Array]


@dataclass
class _Point:
    """A probe with its penalised loss, gradient and gap bound; `exact` if computed in float64 from the rows."""

    theta: Array
    loss: float
    gradient: Array
    bound: float
    at: _Measured
    exact: bool
    kind: int = 0

    @property
    def gap(self) -> float:
        return self.bound / max(self.loss, 1e-300)


class _FarStep(NamedTuple):
    """A step far from the optimum: the gradient g that it began with, g'Mg, and the decrement as a share of that."""

    gradient: Array
    step: Array
    size: float
    gain: float


class NumpyNewton:
    """The method for one set of rows: with full Hessians, or, given the X (N, D) of `data`, in its columns.

    Attributes
    ----------
    whole : whether full Hessians are used
    held : (N, c+1) rows for Hessians, centred, with a last column of ones; float64, or float32 if X is given
    X : (N, c) rows for losses and gradients in float64, where a row is (X - centre) * inverse
    moved : (D,) mean subtracted from the rows of `data`
    basis : (D, c) of the rows if there are more columns than rows, else None; left_out (N,) : norms outside it
    norms : (N,) norms of the rows, including the last column
    """

    def __init__(self, data: WeightedData, tol: float, X: Array | None = None) -> None:
        self.y, self.w, self.R, self.N = data.y.numpy(), data.weights.numpy(), data.n_coef_rows, len(data)
        self.tol, self.intercept, self.whole = tol, data.intercept, X is None
        self.X = np.empty(0) if X is None else X
        shares = np.bincount(self.y, self.w, minlength=data.n_classes)
        step = max(BLOCK // max(self.R, data.width // WIDE), 16)
        self.blocks = [slice(start, start + step) for start in range(0, self.N, step)]
        self.flat = FLAT if self.R == 1 else FLAT_OF_MANY
        self.basis: Array | None = None
        self.left_out = np.zeros(1)
        self.inverse: Array | float = 1.0
        if self.whole:
            self._hold_all(data)
        else:
            self._hold_float32(data)
        self.last_far: _FarStep | None = None
        self.bound = Bound(float(np.sqrt(2) * self.norms.max()), shares)
        self.weighted_norms = np.column_stack([self.norms, self.held[:, -1]]) * self.w[:, None]
        theta = np.zeros((self.R, self.held.shape[1]))
        if self.intercept:
            theta[:, -1] = prior_intercept(shares)
        self.zero = self.evaluate(theta, 0.0)
        # if the gradient is zero, as for constant columns, this is its rounding error
        self.at_zero = max(self._largest(self.zero.gradient), self._noise(self.zero.at, 0.0, 0.0)[0] / GRADIENT_RATIO)
        self.limit = max(GRADIENT_RATIO * self.at_zero, 1e-14)

    def _hold_all(self, data: WeightedData) -> None:
        """Centred float64 rows, in a basis of as many columns as there are rows."""
        if isinstance(data.X, np.ndarray):  # as `read`, but without torch, whose calls take an eighth of a tiny fit
            held = np.full((self.N, data.width + 1), 1.0 if self.intercept else 0.0)
            held[:, :-1] = data.X
            if data.shift is not None and data.scale is not None:
                held[:, :-1] = (held[:, :-1] - data.shift.numpy()) / data.scale.numpy()
        else:
            held = replace(data, dtype=torch.float64).read(0, self.N).numpy()
        self.moved = self.w @ held[:, :-1] if self.intercept else np.zeros(data.width)
        held[:, :-1] -= self.moved
        if data.width > self.N:
            self.basis = np.linalg.qr(held[:, :-1].T)[0]
            z = held[:, :-1] @ self.basis
            self.left_out = np.linalg.norm(held[:, :-1] - z @ self.basis.T, axis=1)
            held = np.column_stack([z, held[:, -1]])
        self.held, self.weights, self.X = held, self.w, held[:, :-1]
        self.centre = np.zeros(self.X.shape[1])
        self.norms = np.linalg.norm(held, axis=1) + self.left_out

    def _hold_float32(self, data: WeightedData) -> None:
        """Centred float32 rows, norms of the rows, variances of the columns."""
        X = self.X
        shift = np.zeros(data.width) if data.shift is None else data.shift.numpy()
        self.inverse = 1.0 if data.scale is None else 1 / data.scale.numpy()
        self.centre = shift
        if self.intercept:  # any centre near the mean will do; a float32 one can be subtracted in float32
            dtype = np.dtype(np.float64 if X.dtype == np.float64 else np.float32)
            w = self.w.astype(dtype)
            self.centre = np.sum([w[rows] @ X[rows].astype(dtype, copy=False) for rows in self.blocks], axis=0)
        self.moved = (self.centre - shift) * self.inverse
        self.held = np.empty((self.N, data.width + 1), np.float32)
        self.held[:, -1] = 1.0 if self.intercept else 0.0
        self.weights = self.w.astype(np.float32)
        self.variances, squares = np.zeros(data.width), np.empty(self.N)
        for rows in self.blocks:
            self.held[rows, :-1] = (X[rows] - self.centre) * self.inverse
            block = np.square(self.held[rows, :-1])
            squares[rows] = block @ np.ones(data.width, np.float32)
            self.variances += self.weights[rows] @ block
        self.centre = self.centre.astype(np.float64)
        # with implicit centring, rounding errors are relative to the original rows
        offset = self.centre * self.inverse
        self.norms = np.sqrt(squares * (1 + 1e-3) + 1.0) + 2 * np.sqrt(offset @ offset)

    def _measure(self, logits: list[Array]) -> _Measured:
        loss, sums, residuals, kept = 0.0, np.zeros(2), [], []
        for rows, z in zip(self.blocks, logits, strict=True):
            residual, p = z.copy(), np.empty(z.shape, self.held.dtype)
            losses, missed = residuals_(residual, self.y[rows], p)
            loss += float(self.w[rows] @ losses)
            sums += missed @ self.weighted_norms[rows]
            residuals.append(residual)
            kept.append(p)
        return _Measured(logits, loss, sums, residuals, kept)

    def evaluate(self, theta: Array, l2: float, solve_intercept: bool = False) -> _Point:
        """Evaluate a probe in float64, optionally after moving its intercepts to their optimum."""
        W = theta[:, :-1] * self.inverse
        b = theta[:, -1:] - (W @ self.centre)[:, None]
        if W.any():
            logits = [W @ self.X[rows].astype(np.float64, copy=False).T + b for rows in self.blocks]
        else:
            logits = [np.tile(b, len(self.y[rows])) for rows in self.blocks]
        at = self._measure(logits)
        if solve_intercept and self.intercept:
            at, moved = self._solve_intercepts(at)
            theta = theta.copy()
            theta[:, -1] += moved
        return self._point(theta, l2, at, exact=True)

    def _point(self, theta: Array, l2: float, at: _Measured, exact: bool) -> _Point:
        W, gradient = theta[:, :-1], np.zeros_like(theta)
        for rows, residuals in zip(self.blocks, at.residuals, strict=True):
            weighted = residuals * self.w[rows].astype(residuals.dtype, copy=False)
            gradient[:, -1] += weighted.sum(axis=1)
            X = self.X[rows].astype(np.float64, copy=False) if exact else self.held[rows, :-1]
            gradient[:, :-1] += weighted @ X
        if exact:
            gradient[:, :-1] = (gradient[:, :-1] - gradient[:, -1:] * self.centre) * self.inverse
        gradient[:, :-1] += l2 * W
        if not self.intercept:
            gradient[:, -1] = 0.0
        square = float(np.vdot(W, W))
        bound = float(self.bound(theta, gradient, self._noise(at, square**0.5, l2), l2)) if l2 else np.inf
        return _Point(theta, at.loss + 0.5 * l2 * square, gradient, bound, at, exact)

    def _noise(self, at: _Measured, size: float, l2: float) -> Array:
        """Bounds on the rounding errors of the gradients of W and b: eight roundings of each row's term.

        That of W also includes the effect of rounded logits on the residuals, and of the part outside the basis.
        """
        noise = 8 * EPS * at.missed
        noise[0] = noise[0] * (1 + self.bound.longest * size) + 8 * EPS * l2 * size
        if self.basis is not None:
            noise[0] += 2**0.5 * float(self.w @ self.left_out)
        return np.asarray(noise)

    def _solve_intercepts(self, at: _Measured) -> tuple[_Measured, Array]:
        """Newton's method for the intercepts; also returns how far they moved."""
        before, moved = np.inf, np.zeros(self.R)
        for _ in range(INTERCEPT_STEPS):
            of_b = sum((r @ self.w[rows] for r, rows in zip(at.residuals, self.blocks, strict=True)), np.zeros(self.R))
            size = float(np.abs(of_b).max())
            if size <= 4 * EPS * at.missed[0] or not size < before:
                break
            _, step, failed = dposv(self._hessian_of_intercepts(at.p), of_b)
            if failed:
                break
            step *= min(1.0, 4 / max(np.abs(step).max(), 1e-300))
            moved, before = moved - step, size
            at = self._measure([z - step[:, None] for z in at.logits])
            if size < ENOUGH_OF_INTERCEPTS:
                break
        return at, moved

    def _hessian_of_intercepts(self, p: list[Array]) -> Array:
        """(R, R), regular; twice as fast as `covariance_of`, as NumPy computes only half of a symmetric product."""
        covariance = np.zeros((self.R, self.R))
        for own, rows in zip(p, self.blocks, strict=True):
            if self.R == 1:
                covariance += own[0] @ self.w[rows]
            else:
                half = own * np.sqrt(self.weights[rows])
                covariance -= half @ half.T
        if self.R > 1:
            np.fill_diagonal(covariance, 0.0)
            np.fill_diagonal(covariance, -covariance.sum(axis=1))
        return regular_intercepts(torch.from_numpy(covariance)[None])[0].numpy()

    def follow(self, l2s: Array, max_steps: int) -> Certified:
        """Probes of penalties (P,), weak to strong, solved from strong to weak.

        Each starts from the last one or from an extrapolation, whichever has the smaller loss.
        """
        P, passes = len(l2s), np.ones(len(l2s), np.int64)
        found: dict[int, _Point] = {}
        with np.errstate(all="ignore"):
            for i in reversed(range(P)):
                l2, known = l2s[i], range(i + 1, min(i + 4, P))
                candidates = [found[j].theta for j in known[:1]]
                x = np.log(l2s[known] / l2)
                if len(x) > 1 and np.diff(x, prepend=0.0).max() > math.log(LEAST_RATIO):
                    thetas = [found[j].theta for j in known]
                    candidates.append(np.tensordot(lagrange(0.0, x, 2), thetas, axes=1))
                starts_at = [self.evaluate(theta, l2, solve_intercept=not self.whole) for theta in candidates]
                if not found:
                    zero = self.zero
                    noise = self._noise(zero.at, 0.0, l2)
                    starts_at.append(replace(zero, bound=float(self.bound(zero.theta, zero.gradient, noise, l2))))
                start = min(starts_at, key=lambda point: point.loss)
                found[i], passes[i] = self.fit(l2, start, min(max_steps, STEPS), self.tol)
                if self.whole and max_steps > 1 and not self._enough(found[i], self.tol):
                    found[i] = self._on_the_way(l2, found[i], min(max_steps, MOST_STEPS))
        return self._certified([found[i] for i in range(P)], passes, passes <= max_steps)

    def _enough(self, at: _Point, tol: float) -> bool:
        return at.gap <= tol and self._largest(at.gradient) <= self.limit

    def _on_the_way(self, l2: float, at: _Point, max_steps: int) -> _Point:
        """Finish an unconverged fit by a sharper bound, or from zero through stronger penalties."""
        again = self._sharpen(at, l2)
        if self._enough(again, self.tol):
            return again
        strongest = max(float(self.w @ np.square(self.held[:, :-1]).sum(axis=1)), WAY * l2)
        steps, other = int(np.ceil(np.log(strongest / l2) / np.log(WAY))), self.zero
        for way in np.geomspace(strongest, l2, steps + 1)[1:]:
            tol = self.tol if way == l2 else ROUGH
            other, _ = self.fit(way, self.evaluate(other.theta, way), max_steps, tol)
        return min(again, self._sharpen(other, l2), key=lambda point: point.bound)

    def fit(self, l2: float, at: _Point, max_steps: int, tol: float) -> tuple[_Point, int]:
        """Newton steps until the bound is at most `tol` times the loss or no step helps; also counts passes."""
        passes, products, floor, self.last_far = 1, 0, np.inf, None
        for _ in range(max_steps):
            if at.gap <= tol and not at.exact:
                at = self.evaluate(at.theta, l2, solve_intercept=not self.whole)
                passes += 1
            if self._enough(at, tol) or not np.isfinite(at.loss) or products > PRODUCTS:
                break
            if self.whole:
                step = _solve(self._hessian(at.at.p, l2), at.gradient.ravel()).reshape(at.gradient.shape)
                change, decrement, spent, last = None, float(np.vdot(step, at.gradient)), 0, False
            else:
                step, change, decrement, spent, last = self._conjugate_gradients(at, l2)
            products, passes = products + spent, passes + 1 + spent
            if not decrement > 0:
                break
            if self.R > 1:  # a component common to all classes changes no probability but adds to the penalty
                step -= step.sum(axis=0) / self.R
            new = self.evaluate(at.theta - step, l2, solve_intercept=True) if last else None
            if new is None or not new.loss <= at.loss * (1 + ROUNDING[self.held.dtype]):
                new = self._descend(at, step, change, decrement, l2)
            if new is None or (not new.gap < at.gap and decrement <= 1e-12 * at.loss):
                # logits updated along rays accumulate rounding errors, so evaluate again as long as that helps
                again = at if at.exact else self.evaluate(at.theta, l2, solve_intercept=not self.whole)
                if at.exact or not again.gap < 0.5 * floor:
                    at = again
                    break
                new, floor = again, again.gap
            at = new
        return (at if at.exact else self.evaluate(at.theta, l2)), passes

    def _hessian(self, p: list[Array], l2: float) -> Array:
        """The Hessian (R*c, R*c), with curvature added along the directions that change no probability.

        It is a graph Laplacian over classes: off-diagonal blocks are -sum_i w_i p_ik p_il x_i x_i', and each diagonal
        block is minus the sum of the others in its row, which avoids cancellation for probabilities near 0 or 1.
        """
        c, R = self.held.shape[1], self.R
        total = np.zeros((R * c, R * c))
        for own, rows in zip(p, self.blocks, strict=True):
            X, root = self.held[rows], np.sqrt(self.w[rows])
            if R == 1:
                half = X * (root * np.sqrt(own[0]))[:, None]
            else:
                half = ((own * root).T[:, :, None] * X[:, None, :]).reshape(len(X), R * c)
            total += half.T @ half
        if R > 1:
            blocks, k = -total.reshape(R, c, R, c), np.arange(R)
            blocks[k, :, k, :] = 0.0
            blocks[k, :, k, :] = -blocks.sum(axis=2)
            # fix the intercept of the class with the most curvature, as a common shift changes no probability
            most = int(blocks[k, -1, k, -1].argmax())
            blocks[most, -1, most, -1] *= 2
            total = blocks.reshape(R * c, R * c)
        extra = np.full((R, c), l2)
        extra[:, -1] = 1e-280 if self.intercept else 1.0
        total.ravel()[:: R * c + 1] += extra.ravel()
        return total

    def _conjugate_gradients(self, at: _Point, l2: float) -> tuple[Array, list[Array] | None, float, int, bool]:
        """Newton's step (R, D+1) until the residual is what the quadratic model, or the certificate, can use.

        Also what it adds to the logits, if known, the decrement, products, and whether the certificate may be met
        after it. After a step that was far from the optimum it is one direction, conjugate to the last as Polak and
        Ribière define it: half a product, and none for the line search.
        """
        weighted = [p * self.weights[rows] for p, rows in zip(at.at.p, self.blocks, strict=True)]
        scale = float(np.abs(at.gradient).max())
        curvature = np.zeros(self.R)
        for own, p in zip(weighted, at.at.p, strict=True):
            curvature += own.sum(axis=1) if self.R == 1 else own.sum(axis=1) - np.einsum("kn,kn->k", own, p)
        M = np.empty_like(at.gradient)
        M[:, :-1] = 1 / (curvature[:, None] * self.variances + l2)
        M[:, -1] = 1 / np.maximum(curvature, 1e-30)
        r = at.gradient / scale
        step, total, spent, left = np.zeros_like(r), 0.0, 0, math.inf
        z = M * r
        rz = start = float(np.vdot(r, z))
        d = z
        size = rz * scale**2
        # far, too, if what the step before gained of its g' M g is expected of this one
        if (last := self.last_far) is not None and last.gain * size > FAR * at.loss:
            along = z + max(float(np.vdot(z, at.gradient - last.gradient)), 0.0) / last.size * last.step
            moved = [
                self._moved(along.astype(np.float32), p, rows) for p, rows in zip(at.at.p, self.blocks, strict=True)
            ]
            curved = l2 * float(np.vdot(along[:, :-1], along[:, :-1]))
            curved += sum(float(np.vdot(v, own * v)) for v, own in zip(moved, weighted, strict=True))
            slope = float(np.vdot(along, r))
            if curved > 0 and slope > 0:
                length, decrement = scale * slope / curved, scale**2 * slope**2 / curved
                self.last_far = _FarStep(at.gradient, scale * along, size, decrement / size)
                return length * along, [np.float32(length) * v for v in moved], decrement, 1, False
        spread = float(self.variances.sum())
        enough = 2 * l2 * STEP_SHARE * self.tol * at.loss / scale**2
        while spent < PRODUCTS:
            spent += 1
            Hd = self._product(d.astype(np.float32), at.at.p, weighted)
            Hd[:, :-1] += l2 * d[:, :-1]
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
            # the remaining gradient of the intercepts changes that of W once they are solved
            left = float(np.vdot(r[:, :-1], r[:, :-1]) + spread * np.vdot(r[:, -1], r[:, -1]))
            small = left <= enough and np.abs(r).max() <= 0.5 * self.limit / scale
            if rz <= min(max(total * scale**2 / at.loss, 1e-9), RTOL) * start or small:
                break
        far = total * scale**2 > FAR * at.loss
        self.last_far = _FarStep(at.gradient, step * scale, size, total / start) if far else None
        return step * scale, None, total * scale**2, spent, left <= 2 * enough

    def _moved(self, d: Array, p: Array, rows: slice) -> Array:
        """What d (R, D+1) float32 adds to the logits (R, n) of rows with probabilities p, less its mean over p."""
        v = d @ self.held[rows].T
        if self.R > 1:
            # relative to the label's entry, the mean is small for a confident row and keeps full accuracy
            v -= of_label(v, self.y[rows])
            v -= np.einsum("kn,kn->n", p, v)
        return np.asarray(v)

    def _product(self, d: Array, p: list[Array], weighted: list[Array]) -> Array:
        """Hessian of the mean loss times d (R, D+1) float32; `weighted` is p times the rows' weights."""
        product = np.zeros(d.shape)
        for i, rows in enumerate(self.blocks):
            v = self._moved(d, p[i], rows)
            v *= weighted[i]
            product += v @ self.held[rows]
        return product

    def _descend(
        self, here: _Point, step: Array, change: list[Array] | None, decrement: float, l2: float
    ) -> _Point | None:
        """The point where the slope along -step has fallen to `FLAT` of its start, by the held rows, or None.

        `change` is what step adds to the logits (blocks), but for a number a row, if it is known.

        A ray costs one product, as a step of length one does. Nearly separated rows need steps of several lengths
        (each of length one divides the loss by e), many classes need short ones at first.
        """
        logits = [z.astype(self.held.dtype, copy=False) for z in here.at.logits]
        if change is None:
            change = [step.astype(self.held.dtype) @ self.held[rows].T for rows in self.blocks]
        of_W, square = -float(np.vdot(here.theta[:, :-1], step[:, :-1])), float(np.vdot(step[:, :-1], step[:, :-1]))
        penalty = 0.5 * l2 * float(np.vdot(here.theta[:, :-1], here.theta[:, :-1]))
        low, high, of_low, of_high = 0.0, np.inf, -decrement, np.inf
        t = min(1.0, here.loss / decrement)
        for _ in range(RAY_STEPS):
            at = self._measure([z - t * dz for z, dz in zip(logits, change, strict=True)])
            loss = at.loss + penalty + l2 * t * (of_W + 0.5 * t * square)
            slope = l2 * (of_W + t * square)
            for rows, residuals, dz in zip(self.blocks, at.residuals, change, strict=True):
                slope -= float(self.w[rows] @ np.einsum("kn,kn->n", residuals, dz))
            falls = loss <= here.loss * (1 + ROUNDING[self.held.dtype])
            if falls and abs(slope) <= self.flat * decrement + EPS * here.loss:  # the last: what rounding leaves of it
                break
            if falls and slope < 0:
                low, of_low = t, slope
            else:
                high, of_high = t, slope
            if high == np.inf:
                t *= min(max(decrement / (decrement + slope), 2.0), 4.0)
            else:
                share = of_low / (of_low - of_high) if of_high > 0 else 0.5
                t = low + (high - low) * min(max(share, 0.1), 0.9)
        return self._point(here.theta + t * (-step), l2, at, exact=False) if falls else None

    def _sharpen(self, at: _Point, l2: float) -> _Point:
        """The same with the bound at the dual point of a full Newton step, if that is smaller.

        The residuals of theta are summed in long double and their corrections in float64, as in iterative refinement:
        with columns of 1e8 next to others, or rows of 1e4, float64 rounding of the sums is too large for a weak
        penalty. (Such fits do not converge on platforms where long double equals double.)
        """
        long, theta, X, w = np.longdouble, at.theta, self.held, self.w
        y, z = torch.from_numpy(self.y), torch.from_numpy(theta @ X.T)[None]

        def displaced(step: Array) -> tuple[Tensor, Tensor]:
            """q - p and p (1, K, N)."""
            return move(z, torch.from_numpy(step.reshape(theta.shape) @ X.T)[None], y)

        def summed(residual: Array) -> Array:
            return (residual[-self.R :].astype(long) * w) @ X.astype(long)

        H = self._hessian(at.at.p, l2)
        every, of_b = np.arange(len(H)), np.arange(X.shape[1] - 1, len(H), X.shape[1])
        step = np.zeros(len(H))
        _, p = displaced(step)
        residual, label = p[0].numpy().astype(long), (self.y, np.arange(self.N))
        residual[label] = 0
        missed = residual.sum(axis=0)
        residual[label] = -missed
        start = summed(residual)
        start[:, :-1] += l2 * theta[:, :-1].astype(long)
        r = start.astype(float)
        # solve the intercepts to full accuracy, because their error is multiplied by the longest row
        for some in (every, of_b) if self.intercept else (every,):
            step[some] -= _solve(H[np.ix_(some, some)], r.ravel()[some])
            moved, p = displaced(step)
            r = (start + summed(moved[0].numpy())).astype(float)
        size = moved[0].abs().sum(dim=0).numpy()
        lengths = np.column_stack([np.linalg.norm(X, axis=1), X[:, -1]]) * w[:, None]
        of_sums = np.finfo(long).eps * (missed @ lengths + [l2 * np.linalg.norm(theta[:, :-1]), 0.0])
        noise = 8 * (of_sums + EPS * (size @ lengths)).astype(float)
        noise[0] += 2**0.5 * float(w @ ((missed.astype(float) + size) * self.left_out))
        logits = theta[:, :-1] @ X[:, :-1].T
        widest = float((np.ptp(logits, axis=0) if self.R > 1 else np.abs(logits[0])).max())
        divergence = float(divergences(moved, p)[0].numpy() @ w)
        bound = divergence + float(self.bound(theta, r, noise, l2, widest))
        return replace(at, bound=bound, kind=1) if bound < at.bound else at

    def _columns(self, gradient: Array) -> Array:
        """Coefficients or gradients (R, c+1) in the columns of the rows (R, D+1)."""
        if self.basis is None:
            return gradient
        return np.column_stack([gradient[:, :-1] @ self.basis.T, gradient[:, -1]])

    def _largest(self, gradient: Array) -> float:
        """max|g| for centred rows, because a mean of 1e8 would amplify the rounding of the intercepts' gradient."""
        return float(np.abs(self._columns(gradient)).max())

    def _certified(self, points: list[_Point], passes: Array, stalled: Array) -> Certified:
        theta = np.stack([self._columns(at.theta) for at in points])
        gradient = np.stack([self._columns(at.gradient) for at in points])
        theta[..., -1] -= theta[..., :-1] @ self.moved
        loss, bound, kind = (np.array([getattr(at, name) for at in points]) for name in ("loss", "bound", "kind"))
        return Certified.of(theta, gradient, self.moved, self.at_zero, loss, bound, kind, passes, stalled)


def _solve(H: Array, g: Array) -> Array:
    """H^-1 g by Cholesky after scaling to a unit diagonal; a Hessian indefinite by rounding is shifted."""
    scale = 1 / np.sqrt(np.maximum(H.diagonal(), 1e-300))
    matrix, shift = H * scale * scale[:, None], 0.0
    while shift < 1e300:
        _, step, failed = dposv(matrix, scale * g)
        if not failed:
            return np.asarray(scale * step)
        more = max(10 * shift, 1e-16)
        matrix.ravel()[:: len(H) + 1] += more - shift
        shift = more
    return np.zeros_like(g)
