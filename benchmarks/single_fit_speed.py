"""One `LinearProbe` fit against scikit-learn's solvers over 30 shapes: `python benchmarks/single_fit_speed.py`.

3 to 60,000 rows, 2 to 4,000 columns, 2 to 1,000 classes; Gaussian classes that overlap, standardised, float64, C = 1,
both with their default tolerance. Each figure is the least of `--repeats` runs after one that is not counted. The peer
is the fastest of scikit-learn's lbfgs, newton-cg and newton-cholesky whose objective ours equals or betters within 1e-4
(relative, float64); newton-cholesky is left out where its Hessian would have more than 4 million entries, and a solver
that takes `--limit` seconds for one fit is not repeated. Rows go to benchmarks/results/single_fit_speed.csv, the
ratio ours / peer for each shape, then their geometric mean, the worst, and how many stay below 1.5.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from path_speed import objective
from rows import record
from sklearn.linear_model import LogisticRegression

from probekit import LinearProbe

SHAPES = (
    (3, 2, 2), (10, 4, 2), (30, 4, 3), (30, 4, 2), (100, 2, 2), (100, 10, 10), (150, 4, 3), (100, 2000, 2),
    (100, 2000, 10), (300, 30, 3), (500, 100, 2), (500, 1000, 5), (1000, 64, 10), (1000, 300, 100), (1800, 64, 10),
    (2000, 20, 200), (2000, 4000, 2), (2000, 4000, 10), (3000, 30, 1000), (3000, 500, 10), (5000, 10, 2),
    (5000, 128, 10), (5000, 768, 2), (8000, 256, 100), (10_000, 256, 10), (10_000, 50, 50), (20_000, 8, 2),
    (20_000, 128, 20), (60_000, 64, 10), (60_000, 16, 2),
)  # fmt: skip
SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky")
TOL = 1e-4


def problem(n, d, K, seed=0):
    """X (n, d) float64, standardised, and y with every class."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(min(K, n)), rng.integers(0, K, max(n - K, 0))])
    X = rng.normal(size=(n, d)) * (1 + np.arange(d)) ** -0.25 + rng.normal(size=(K, d))[y] * min(1.0, 2 / np.sqrt(d))
    spread = X.std(axis=0)
    return (X - X.mean(axis=0)) / np.where(spread > 0, spread, 1.0), np.unique(y, return_inverse=True)[1]


def least(fit, repeats, limit):
    """Least seconds of wall time and of CPU time of several runs, and the model; one run where it takes `limit`."""
    seconds = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        if seconds[-1][0] > limit:
            break
    return np.min(seconds[1:] or seconds, axis=0), model


def matrix(shapes, repeats, limit):
    """Yield the rows of every shape and of all together."""
    ratios = []
    for n, d, K in shapes:
        X, y = problem(n, d, K)
        ours, probe = least(lambda X=X, y=y: LinearProbe().fit(X, y), repeats, limit)
        ours_value = objective(X, y, probe.coef_, probe.intercept_, 1.0)
        peers = {}
        for solver in SOLVERS:
            if solver == "newton-cholesky" and (d * (1 if K == 2 else K)) ** 2 > 4e6:
                continue
            seconds, model = least(
                lambda X=X, y=y, solver=solver: LogisticRegression(solver=solver, max_iter=1000).fit(X, y),
                repeats, limit,
            )  # fmt: skip
            value = objective(X, y, model.coef_, model.intercept_, 1.0)
            if (ours_value - value) / value <= TOL:
                peers[solver] = seconds
        what = f"{n}x{d}, {K} classes:"
        yield f"{what} ours, ms", 1e3 * ours[0]
        yield f"{what} ours, certified", probe.converged_
        if not peers:
            yield f"{what} solvers that ours does not equal", len(SOLVERS)
            continue
        best = [min(peers, key=lambda solver, clock=clock: peers[solver][clock]) for clock in (0, 1)]
        ratios.append([ours[clock] / peers[best[clock]][clock] for clock in (0, 1)])
        yield f"{what} {best[0]}, ms", 1e3 * peers[best[0]][0]
        yield f"{what} ours / {best[0]}, wall time", ratios[-1][0]
        yield f"{what} ours / {best[1]}, CPU time", ratios[-1][1]
    for clock, name in enumerate(("wall time", "CPU time")):
        of = np.array(ratios)[:, clock]
        yield f"{len(of)} shapes, {name}: geometric mean of ours / the fastest solver", np.exp(np.log(of).mean())
        yield f"{len(of)} shapes, {name}: largest ours / the fastest solver", of.max()
        yield f"{len(of)} shapes, {name}: shapes within 1.5", (of <= 1.5).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--toy", action="store_true", help="the shapes of at most 2,000 entries, once")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] <= 2000] if options.toy else SHAPES
    repeats = 1 if options.toy else options.repeats
    record("single_fit_speed_toy" if options.toy else "single_fit_speed", matrix(shapes, repeats, options.limit))


if __name__ == "__main__":
    main()
