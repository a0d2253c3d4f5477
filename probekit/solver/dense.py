"""Newton's method with the whole Hessian, in NumPy: for problems so small that calls cost more than flops.

The Hessian of the mean loss is a graph Laplacian over classes: off-diagonal blocks are -sum_i w_i p_ik p_il x_i x_i'
and each diagonal block is minus the sum of the others in its row, so that nothing cancels where probabilities are
nearly 0 or 1.

Shapes: N rows, c columns (the last one of ones), R coefficient rows (1 if K = 2), theta (R, c).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax, xlog1py

Array = NDArray[np.float64]

# flops of one Hessian above which conjugate gradients with a factor are faster (see docs/explanation/solver.md)
MOST_FLOPS = 4e7
MOST_COLUMNS = 320
SHARE = 0.25  # of the tolerance, at which a fit ends: the certificate adds the rounding of its own sums
SUFFICIENT_DECREASE = 1e-4
ROUNDING = 1e-14  # of the loss
FAR = 0.1  # a step that must be shorter says that the start is too far from the optimum for Newton's method
FAR_STEPS = 15  # and so do more steps than these
WAY = 10.0  # ratio of the penalties on the way to one that is too far
RAY_STEPS = 60
ROUGH = 1e-2  # duality gap over loss of penalties on the way
CLOSE = 1e-3  # penalties nearer than this in log l2 do not serve as two points of an extrapolation


def is_small(n_rows: int, n_coef_rows: int, n_columns: int) -> bool:
    """Whether the dense method is the fastest for a problem of this shape."""
    M = n_coef_rows * n_columns
    return M <= MOST_COLUMNS and n_rows * M * M <= MOST_FLOPS


@dataclass(frozen=True)
class DenseProblem:
    """Rows X (N, c) float64, labels y (N,), weights (N,) summing to 1; `free` says whether the last column counts."""

    X: Array
    y: NDArray[np.int64]
    weights: Array
    n_coef_rows: int
    intercept: bool

    def evaluate(self, theta: Array, l2: float) -> tuple[float, Array, Array]:
        """Loss, gradient (R, c), probabilities (N, R); for R = 1 the curvatures p (1 - p) (N, 1)."""
        z = self.X @ theta.T
        if self.n_coef_rows == 1:
            sign = 1.0 - 2.0 * self.y
            margin = z[:, 0] * sign  # by which the wrong class leads
            small = np.exp(-np.abs(margin))
            losses = np.maximum(margin, 0) + np.log1p(small)
            missed = np.where(margin > 0, 1, small) / (1 + small)
            p, residual = (small / np.square(1 + small))[:, None], (missed * sign)[:, None]
        else:
            rows = np.arange(len(z))
            own = z[rows, self.y]
            z[rows, self.y] = -np.inf
            top = np.maximum(z.max(axis=1), own)
            np.exp(z - top[:, None], out=z)
            others, own = z.sum(axis=1), own - top
            total = others + np.exp(own)
            losses = np.where(own == 0, np.log1p(others), np.log(total) - own)
            z /= total[:, None]
            p = z.copy()
            p[rows, self.y] = np.exp(own) / total
            residual = z
            residual[rows, self.y] = -others / total
        W = theta[:, :-1]
        gradient = (residual * self.weights[:, None]).T @ self.X
        gradient[:, :-1] += l2 * W
        return float(self.weights @ losses + 0.5 * l2 * np.vdot(W, W)), gradient, p

    def hessian(self, p: Array, l2: float) -> Array:
        """The Hessian (R*c, R*c) at probabilities p, with curvature along the directions that change no probability."""
        (N, c), R = self.X.shape, self.n_coef_rows
        if R == 1:
            half = self.X * np.sqrt(self.weights * p[:, 0])[:, None]
            blocks = (half.T @ half).reshape(1, c, 1, c)
        else:
            half = ((np.sqrt(self.weights)[:, None] * p)[:, :, None] * self.X[:, None, :]).reshape(N, R * c)
            blocks = -(half.T @ half).reshape(R, c, R, c)
            k = np.arange(R)
            blocks[k, :, k, :] = 0.0
            blocks[k, :, k, :] = -blocks.sum(axis=2)
            # the class with most curvature keeps its intercept: adding the same to all changes no probability
            most = int(blocks[k, -1, k, -1].argmax())
            blocks[most, -1, most, -1] *= 2
        H: Array = blocks.reshape(R * c, R * c)
        extra = np.full((R, c), l2)
        extra[:, -1] = 1e-280 if self.intercept else 1.0
        H.ravel()[:: R * c + 1] += extra.ravel()
        return H

    def ray_minimum(self, theta: Array, step: Array, l2: float, decrement: float) -> float:
        """A length t in (0, 1) up to which the loss of theta - t step falls, to a tenth of its slope at 0 or less.

        Newton's method in one number, kept in a bracket. Cutting a step by halves instead takes up to twice as many
        Hessians where rows become active one after the other, as with weights or scales over many orders.
        """
        z, dz, rows = self.X @ theta.T, -(self.X @ step.T), np.arange(len(self.X))
        if self.n_coef_rows == 1:
            z, dz = np.column_stack([np.zeros_like(z), z]), np.column_stack([np.zeros_like(dz), dz])
        behind, change = z - z[rows, self.y][:, None], dz - dz[rows, self.y][:, None]
        of_W = float(np.vdot(theta[:, :-1], step[:, :-1]))
        square = float(np.vdot(step[:, :-1], step[:, :-1]))
        low, high, t = 0.0, 1.0, 0.5
        for _ in range(RAY_STEPS):
            at = behind + t * change
            p = np.exp(at - at.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            mean = (p * change).sum(axis=1)
            slope = float(self.weights @ mean) + l2 * (t * square - of_W)
            curvature = float(self.weights @ (p * np.square(change - mean[:, None])).sum(axis=1)) + l2 * square
            if -0.1 * decrement <= slope <= 0 or high - low < 1e-3 * low:
                break
            low, high = (low, t) if slope > 0 else (t, high)
            t = t - slope / curvature if curvature > 0 else low
            if not low < t < high:
                t = 0.5 * (low + high)
        return low if slope > 0 and low > 0 else t


def newton_step(H: Array, gradient: Array) -> tuple[Array, float]:
    """The step H^-1 gradient (R, c) and the decrement g' H^-1 g; a Hessian that rounding made indefinite is shifted."""
    matrix, shift = torch.from_numpy(H), 0.0
    g = torch.from_numpy(gradient.reshape(-1, 1))
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            step = torch.cholesky_solve(g, factor)
            return step.numpy().reshape(gradient.shape), float((step * g).sum())
        more = max(10 * shift, 1e-16 * float(matrix.diagonal().max()), 1e-290)
        if not more < 1e300:  # entries that are not finite: no shift helps
            return np.zeros_like(gradient), 0.0
        matrix.diagonal().add_(more - shift)
        shift = more


def dual_point(problem: DenseProblem, theta: Array, l2: float) -> tuple[Array, float, Array, float]:
    """The dual point of a whole Newton step, as `probekit.solver.dual_point`, with sums in extended precision.

    The residuals of theta's own probabilities are summed in long doubles, what is added to them in float64, as in
    iterative refinement: where columns of 1e8 stand beside others, or rows of 1e4, the sums' rounding is more than
    a weak penalty allows. (Where a long double is no longer than a double, such fits stay open.)

    Returns
    -------
    residual r (R, c), divergence, (2,) bounds of what rounding adds to the norms of r_W and r_b, and the largest range
    over classes of a row's logits without the intercepts
    """
    long, (N, R) = np.longdouble, (len(problem.X), problem.n_coef_rows)
    rows, X, w, y = np.arange(N), problem.X, problem.weights, problem.y

    def behind(coefficients: Array) -> Array:
        """Logits (N, K) less the label's."""
        z = X @ coefficients.T
        z = np.column_stack([np.zeros(N), z]) if R == 1 else z
        return z - z[rows, y][:, None]

    def summed(residual: NDArray[np.floating]) -> NDArray[np.floating]:
        return (residual[:, -R:] * w.astype(long)[:, None]).T @ X.astype(long)

    def balanced(residual: NDArray[np.floating]) -> NDArray[np.floating]:
        """The same with the label's entry minus the sum of the others."""
        residual[rows, y] = 0
        residual[rows, y] = -residual.sum(axis=1)
        return residual

    p = np.maximum(softmax(behind(theta), axis=1), 1e-300)  # one that underflows may be any other as small
    start = summed(balanced(p.astype(long)))
    start[:, :-1] += l2 * theta[:, :-1].astype(long)
    H = problem.hessian(problem.evaluate(theta, l2)[2], l2)
    scale = 1 / np.sqrt(np.maximum(H.diagonal(), 1e-300))
    H *= scale * scale[:, None]
    of_b = np.arange(X.shape[1] - 1, len(H), X.shape[1])
    every = np.arange(len(H))
    moved, r = np.zeros_like(p), start.astype(float)
    # then the intercepts alone, to the last digit: what they leave is multiplied by the longest row
    for some in (every, of_b) if problem.intercept else (every,):
        step = np.zeros(len(H))
        step[some] = -scale[some] * newton_step(H[np.ix_(some, some)], scale[some] * r.ravel()[some])[0]
        change = behind(step.reshape(theta.shape))
        moved = balanced(np.maximum(moved + p * (change - (p * change).sum(axis=1, keepdims=True)), -p))
        moved[moved[rows, y] < -p[rows, y]] = 0  # outside the simplex
        r = (start + summed(moved)).astype(float)
    ratio = moved / p
    divergence = float(w @ (p * (xlog1py(1 + ratio, ratio) - ratio)).sum(axis=1))
    lengths = np.column_stack([np.linalg.norm(X, axis=1), X[:, -1]]) * w[:, None]
    size = [np.linalg.norm(theta[:, :-1]), 0.0]
    of_sums = np.finfo(long).eps * ((1 - p[rows, y]) @ lengths + l2 * np.array(size))
    noise: Array = 8 * (of_sums.astype(float) + np.finfo(float).eps * (np.abs(moved).sum(axis=1) @ lengths))
    without = theta.copy()
    without[:, -1] = 0
    return r, divergence, noise, float(np.ptp(behind(without), axis=1).max())


Enough = Callable[[float, Array, Array, float], bool]  # (loss, gradient, theta, l2)


def minimise(
    problem: DenseProblem, theta: Array, l2: float, enough: Enough, max_steps: int, patient: bool = True
) -> tuple[Array, int, bool]:
    """Newton steps from theta until `enough`: theta, steps, and whether the start was near enough for the method.

    Not `patient`, it gives up when a step must be cut short or steps are many: the start was too far away.
    """
    loss, gradient, p = problem.evaluate(theta, l2)
    for taken in range(max_steps):
        if enough(loss, gradient, theta, l2):
            return theta, taken + 1, True
        if taken == FAR_STEPS and not patient:
            return theta, taken + 1, False
        step, decrement = newton_step(problem.hessian(p, l2), gradient)
        trial = theta - step
        new_loss, new_gradient, new_p = problem.evaluate(trial, l2)
        if not new_loss <= loss * (1 + ROUNDING) - SUFFICIENT_DECREASE * decrement:
            length = problem.ray_minimum(theta, step, l2, decrement)
            if length < FAR and not patient:
                return theta, taken + 1, False
            trial = theta - length * step
            new_loss, new_gradient, new_p = problem.evaluate(trial, l2)
            if not new_loss < loss:
                return theta, taken + 1, True  # nothing is left to gain but rounding
        if decrement <= 1e-18 * loss and np.vdot(new_gradient, new_gradient) >= np.vdot(gradient, gradient):
            return theta, taken + 1, True
        theta, loss, gradient, p = trial, new_loss, new_gradient, new_p
    return theta, max_steps, patient


def roughly(loss: float, gradient: Array, theta: Array, l2: float) -> bool:
    """Enough for a penalty on the way to another one."""
    return float(np.vdot(gradient[:, :-1], gradient[:, :-1])) <= 2 * l2 * ROUGH * loss


def follow(
    problem: DenseProblem, theta: Array, l2s: Array, enough: Enough, max_steps: int
) -> tuple[Array, NDArray[np.int64]]:
    """Probes (P, R, c) of penalties sorted from strong to weak, the first from `theta`, and the Newton steps of each.

    `theta` has no coefficients, or those of the first penalty. The others start from the extrapolation of the last
    three or from their neighbour, whichever has the smaller loss.
    """
    found, steps = np.empty((len(l2s), *theta.shape)), np.empty(len(l2s), np.int64)
    start, l2_of_start = theta, max(float(problem.weights @ np.square(problem.X[:, :-1]).sum(axis=1)), l2s[0])
    for i, l2 in enumerate(l2s):
        if i:
            theta = start = found[i - 1]
            l2_of_start = l2s[i - 1]
            near = slice(max(i - 3, 0), i)
            x = np.log(l2s[near] / l2)
            if len(x) > 1 and -np.diff(x).max() > CLOSE and x[-1] > CLOSE:
                apart = x[:, None] - x
                ratios = -x / np.where(apart == 0, 1.0, apart)  # column j over the differences to x_j
                weights = np.where(np.eye(len(x), dtype=bool), 1.0, ratios).prod(axis=1)
                trial = np.tensordot(weights, found[near], axes=1)
                if problem.evaluate(trial, l2)[0] < problem.evaluate(theta, l2)[0]:
                    theta = trial
        found[i], steps[i], near_enough = minimise(problem, theta, l2, enough, max_steps, patient=False)
        if near_enough:
            continue
        between = int(np.ceil(np.log(l2_of_start / l2) / np.log(WAY)))
        for way in l2_of_start * (l2 / l2_of_start) ** (np.arange(1, between) / max(between, 1)):
            start, more, _ = minimise(problem, start, float(way), roughly, max_steps)
            steps[i] += more
        found[i], more, _ = minimise(problem, start, l2, enough, max_steps)
        steps[i] += more
    return found, steps
