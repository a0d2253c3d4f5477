"""One `LinearProbe` fit against scikit-learn's solvers over 30 shapes: `python benchmarks/single_fit_speed.py`.

3 to 60,000 rows, 2 to 4,000 columns, 2 to 1,000 classes; Gaussian classes that overlap, standardised, C = 1, `--dtype`
float64 or float32. Ours has its default tolerance, 1e-4 of the objective, certified. Each of scikit-learn's lbfgs,
newton-cg and newton-cholesky is timed twice: at its default tolerance, whatever its objective, and at the loosest of
1e-4, 1e-5, ... 1e-8 that brings its objective within 1e-4 of the least that any fit reached. All fits of a shape are
timed in turn after one that is not counted, `--repeats` times (small shapes 20 times); the least time of each counts.
newton-cholesky is left out where its Hessian would have more than 4 million entries; what is ten times slower than the
fastest is neither repeated nor tried at a tighter tolerance. `--shapes 0:10` measures some of them.

Rows go to benchmarks/results/single_fit_speed.csv: for each shape the ratios ours / the fastest peer, then geometric
mean, largest, and shapes within 1.5; a table of them is printed at the end. Set
OMP_NUM_THREADS=1: `--threads` sets torch's threads alone.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from path_speed import objective
from rows import record, table
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


def timed(fit):
    """The model, and the seconds of wall and of CPU time that its fit took."""
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit()
    return model, np.array([time.perf_counter() - wall, time.process_time() - cpu])


def peers(X, y, value):
    """Fits of scikit-learn: (solver, tol) -> (function, excess of its objective over the least)."""
    K, least, found, fastest = len(np.unique(y)), value, {}, np.inf
    for solver in SOLVERS:
        if solver == "newton-cholesky" and (X.shape[1] * (1 if K == 2 else K)) ** 2 > 4e6:
            continue
        for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):

            def fit(solver=solver, tol=tol):
                return LogisticRegression(solver=solver, tol=tol, max_iter=10_000).fit(X, y)

            model, seconds = timed(fit)
            fastest = min(fastest, seconds[1])
            reached = objective(X, y, model.coef_, model.intercept_, 1.0)
            found[solver, tol], least = (fit, reached), min(least, reached)
            if reached <= least * (1 + TOL) or seconds[1] > 10 * fastest:
                break
    return {name: (fit, reached / least - 1) for name, (fit, reached) in found.items()}


def matrix(shapes, repeats, dtype):
    """Yield the rows of every shape and of all together."""
    ratios: dict[str, list] = {"equal objective": [], "default tolerance": []}
    for n, d, K in shapes:
        X, y = problem(n, d, K)
        X = X.astype(dtype)

        def ours(X=X, y=y):
            return LinearProbe().fit(X, y)

        probe, first = timed(ours)
        others = peers(X, y, objective(X, y, probe.coef_, probe.intercept_, 1.0))
        seconds: dict[str, list] = {name: [] for name in ("ours", *others)}
        for _ in range(repeats if first[1] > 0.02 else 20):
            seconds["ours"].append(timed(ours)[1])
            fastest = min((min(s[1] for s in own) for own in seconds.values() if own), default=0.0)
            for name, (fit, _) in others.items():
                if not seconds[name] or seconds[name][-1][1] <= 10 * fastest:
                    seconds[name].append(timed(fit)[1])
        least = {name: np.min(own, axis=0) for name, own in seconds.items()}
        what = f"{n}x{d}, {K} classes:"
        yield f"{what} ours, CPU ms", 1e3 * least["ours"][1]
        yield f"{what} ours, certified", probe.converged_
        groups = {
            "equal objective": [name for name, (_, excess) in others.items() if excess <= TOL],
            "default tolerance": [name for name in others if name[1] == TOL],
        }
        for group, names in groups.items():
            if not names:
                yield f"{what} {group}: no peer reaches it", np.nan
                continue
            best = min(names, key=lambda name: least[name][1])
            ratios[group].append(least["ours"] / least[best])
            label = f"{what} {group}, {best[0]} tol={best[1]:g}"
            yield f"{label}, CPU ms", 1e3 * least[best][1]
            yield f"{label}, excess of its objective", others[best][1]
            yield f"{label}, ours / it in wall time", ratios[group][-1][0]
            yield f"{label}, ours / it in CPU time", ratios[group][-1][1]
    for group, found in ratios.items():
        for clock, name in enumerate(("wall time", "CPU time")):
            of = np.array(found)[:, clock]
            what = f"{len(of)} shapes, ours / the fastest peer in {name}: {group}"
            yield f"{what}, geometric mean", np.exp(np.log(of).mean())
            yield f"{what}, largest", of.max()
            yield f"{what}, shapes within 1.5", (of <= 1.5).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", default="0:30", help="positions, as a slice")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--toy", action="store_true", help="the shapes of at most 2,000 entries, once")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] <= 2000 or not options.toy]
    shapes = shapes[slice(*map(int, options.shapes.split(":")))]
    name = "single_fit_speed" + ("_float32" if options.dtype == "float32" else "") + ("_toy" if options.toy else "")
    print(table(record(name, matrix(shapes, 1 if options.toy else options.repeats, options.dtype))))


if __name__ == "__main__":
    main()
