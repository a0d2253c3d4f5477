"""An independent solver in float64 NumPy (damped Newton, whole Hessian) and random problems, hard in known ways."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Problem:
    """X (N, D), labels y (N,) 0..K-1, sample weights (N,), C, and the solver's dtype."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    C: float
    dtype: str
    what: str

    def l2(self):
        return 1 / (self.C * self.weights.sum())


def objective(X, y, weights, coef, intercept, l2):
    """Mean loss + l2/2 |coef|^2, its gradient by (coef, intercept) (R, D+1), probabilities (N, K), for R = 1 or K rows.

    log(1 + sum of exp(z_k - z_label)) keeps the digits of losses far below 1.
    """
    z = X @ coef.T + intercept
    if len(coef) == 1:
        z = np.hstack([np.zeros_like(z), z])
    rows = np.arange(len(y))
    behind = z - z[rows, y][:, None]
    behind[rows, y] = -np.inf
    top = np.maximum(behind.max(axis=1), 0)
    others = np.exp(behind - top[:, None])
    own = np.exp(-top)
    total = others.sum(axis=1) + own
    losses = np.where(top > 0, top + np.log(total), np.log1p(others.sum(axis=1)))
    share = weights / weights.sum()
    p = others / total[:, None]
    missed = p.sum(axis=1)
    p[rows, y] = own / total
    residual = p.copy()
    residual[rows, y] = -missed
    kept = residual if len(coef) > 1 else residual[:, 1:]
    gradient = (kept * share[:, None]).T @ np.column_stack([X, np.ones(len(X))])
    gradient[:, :-1] += l2 * coef
    return float(share @ losses + l2 / 2 * np.sum(coef**2)), gradient, p


def loss_and_gradient(X, y, coef, intercept, l2, weights=None):
    """Value and the gradients of coef and intercept, on the rows as given."""
    X, weights = np.asarray(X, np.float64), np.ones(len(y)) if weights is None else weights
    value, gradient, _ = objective(X, np.asarray(y), weights, np.asarray(coef), np.asarray(intercept), l2)
    return value, gradient[:, :-1], gradient[:, -1]


def optimum(X, y, weights, n_classes, l2, max_steps=400):
    """The least value of the objective and a lower bound of it: damped Newton from zero, centred columns.

    The lower bound is the value minus |g_coef|^2 / (2 l2), which convexity gives once the intercept's gradient is 0.
    """
    share = weights / weights.sum()
    X = X - share @ X
    R = 1 if n_classes == 2 else n_classes
    theta = np.zeros((R, X.shape[1] + 1))
    ones = np.column_stack([X, np.ones(len(X))])
    c = ones.shape[1]
    value, gradient, p = objective(X, y, weights, theta[:, :-1], theta[:, -1], l2)
    for _ in range(max_steps):
        if R == 1:
            H = (ones * (share * p[:, 0] * p[:, 1])[:, None]).T @ ones
        else:
            H = np.zeros((R, c, R, c))
            for k in range(R):
                for j in range(k):
                    block = (ones * (share * p[:, k] * p[:, j])[:, None]).T @ ones
                    H[k, :, j, :] = H[j, :, k, :] = -block
                    H[k, :, k, :] += block
                    H[j, :, j, :] += block
            most = np.diagonal(H[:, -1, :, -1]).argmax()
            H[most, -1, most, -1] *= 2
            H = H.reshape(R * c, R * c)
        extra = np.full((R, c), l2)
        extra[:, -1] = 1e-300
        H[np.diag_indices(R * c)] += extra.ravel()
        scale = 1 / np.sqrt(np.maximum(np.diagonal(H), 1e-290))
        try:
            step = scale * np.linalg.solve(H * scale * scale[:, None], scale * gradient.ravel())
        except np.linalg.LinAlgError:
            break
        decrement = step @ gradient.ravel()
        length = 1.0
        while length > 1e-12:
            trial = theta - length * step.reshape(R, c)
            new, new_gradient, new_p = objective(X, y, weights, trial[:, :-1], trial[:, -1], l2)
            if new <= value - 1e-4 * length * decrement + 1e-15 * value:
                break
            length /= 2
        else:
            break
        theta, value, gradient, p = trial, min(new, value), new_gradient, new_p
        if decrement < 1e-13 * value:
            break
    return value, value - np.sum(gradient[:, :-1] ** 2) / (2 * l2)


def random_problem(seed):
    """A problem of up to 300 rows and 1,200 coefficients: scales over 12 orders, rare classes, separated rows."""
    rng = np.random.default_rng(seed)
    N = int(np.exp(rng.uniform(np.log(3), np.log(300))))
    K = int(np.exp(rng.uniform(np.log(2), np.log(min(200, max(N // 2, 2)) + 0.99))))
    D = int(np.exp(rng.uniform(0, np.log(2 * N))))
    D = max(1, min(D, (1200 if rng.random() < 0.1 else 250) // K))
    X = rng.normal(size=(N, D))
    what = []
    y = np.concatenate([np.arange(K), rng.integers(0, K, max(N - K, 0))])[:N]
    if rng.random() < 0.5:  # rare classes
        what.append("rare")
        shares = rng.dirichlet(np.full(K, 0.2))
        y[K:] = rng.choice(K, size=max(N - K, 0), p=shares)
    kind = rng.integers(0, 4)
    if kind == 1:  # classes far apart
        X += rng.uniform(1, 10) * rng.normal(size=(K, D))[y]
        what.append("apart")
    elif kind == 2:  # nearly separated by a linear rule with little noise
        scores = X @ rng.normal(size=(D, K)) + rng.standard_cauchy(size=(N, K)) * 0.05
        y = np.concatenate([np.arange(K), np.argmax(scores, axis=1)[K:]])
        what.append("near-separable")
    elif kind == 3 and D > 1:  # duplicated and constant columns, integer features
        X = np.round(X * 2)
        X[:, rng.integers(D)] = X[:, 0]
        X[:, rng.integers(D)] = rng.choice([0.0, 1.0, 1e5])
        what.append("duplicates")
    if rng.random() < 0.4:
        X = X * 10.0 ** rng.uniform(-6, 6, D)
        what.append("scaled columns")
    if rng.random() < 0.2:
        X = X + rng.normal(size=D) * 100 * np.abs(X).mean(axis=0)
        what.append("shifted")
    if rng.random() < 0.2:
        X = X * 10.0 ** rng.uniform(-2, 2, N)[:, None]
        what.append("scaled rows")
    weights = np.ones(N)
    if rng.random() < 0.4:
        weights = 10.0 ** rng.uniform(-6, 6, N) if rng.random() < 0.5 else rng.integers(0, 3, N) + 0.0
        weights[:K] = np.maximum(weights[:K], max(weights.max(), 1.0) * 1e-12)
        what.append("weights")
    C = 10.0 ** rng.uniform(-6, 5)
    dtype = rng.choice(["float32", "float64"])
    if dtype == "float32":
        X = X.astype(np.float32)
    return Problem(X, y, weights, float(C), str(dtype), " ".join(what))


def verdict(problem, path, index=0):
    """(converged, true relative gap, whether the reference is sure of it to 1e-6) of one fit of a path."""
    X = problem.X.astype(np.float64)
    K = len(path.classes)
    best, low = optimum(X, problem.y, problem.weights, K, problem.l2())
    ours = objective(X, problem.y, problem.weights, path.coef[index], path.intercept[index], problem.l2())[0]
    least = min(best, ours)
    return bool(path.converged[index]), ours / best - 1, low > 0 and (least - low) / least < 1e-6
