"""Whole penalty paths, ours and every peer's in one run: `python benchmarks/path_speed.py [CASE ...]`.

Cases, each on raw and on standardised features (`--only raw|standardised`), with the penalties of the `igpt` protocol
(C = logspace(-6, 5, 45)), one thread (set OMP_NUM_THREADS=1 too):
- `digits` 1,797 x 64, `fashion` 10,000 x 256, `large` 50,000 x 512, `classes` 20,000 x 768 with 100 classes. Features
  of the last three are rectified random projections of Fashion-MNIST pictures (the folder `--root`, or a Gaussian
  mixture of the same shape where it is absent: the row says which), float32 for all; `--seed` draws other projections
  of other pictures.
- `sweep`: a feature file of 3 layers swept with five folds and the whole grid, against the loop a user would write.
- `scaling`: ours alone, slopes in n, d, K and penalties.

Ours has its default tolerance: certified to a relative gap of 1e-4. A peer (`--ways` chooses) goes from strong to weak
penalties, and is timed in one or both of two ways:
- *default*: at tol=1e-4, whatever its objective;
- *equal*: at the loosest of tol = 1e-4, 1e-5, ... 1e-9 that brings its objective within 1e-4 of ours, tried in turn,
  each from where the last one stopped. So it knows when to stop, which a user does not.
Times are CPU seconds. A peer that has spent `--limit` of them, or `--times` as many as ours, is stopped, also within a
fit; the ratio to ours, which did every penalty, is then a lower bound ("stopped at CPU s / ours"), and a row says how
many penalties it had done. Nothing is scaled up. Every objective is computed in float64 by one function. Rows go to
benchmarks/results/path_speed.csv, a table of them is printed at the end of a case; `--toy` shrinks every case.
"""

import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import sklearn
import torch
from peers import PEERS, logistic_regression_cv
from rows import parser, record, table
from rows import timed as timed_by
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from probekit import FeatureStore, load_dataset, sweep
from probekit.probes import fit_path, get_protocol
from probekit.runtime.errors import UserError

timed = partial(timed_by, clock=time.process_time)  # CPU seconds of this process, and the result
TOL = 1e-5  # of the cases `scaling` and of the GPU's: the relative objective gap
EQUAL = 1e-4  # the relative difference of objectives that counts as equal; ours is certified to it
LADDER = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
PENALTIES = np.logspace(1, -6, 45)  # l2 of the mean loss, of the scaling case
CS = np.array(get_protocol("igpt").Cs)  # of what a sweep solves
HESSIAN_BYTES = 2 << 30  # newton-cholesky with a larger Hessian is left out
# peer, start, what it is timed at
WAYS = (
    ("newton-cg", "warm", "equal"), ("lbfgs", "warm", "equal"), ("lbfgs", "cold", "equal"),
    ("newton-cholesky", "warm", "equal"), ("torch L-BFGS", "warm", "equal"), ("newton-cg", "warm", "default"),
    ("lbfgs", "warm", "default"), ("lbfgs", "cold", "default"), ("LogisticRegressionCV", "warm", "default"),
    ("torch L-BFGS, history 10", "cold", "default"),
)  # fmt: skip


def pictures(root, n, seed=0):
    """(n, 784) float32 pictures in [0, 1] and labels; a mixture of ten Gaussians where Fashion-MNIST is not found."""
    try:
        data = load_dataset("fashion-mnist", root=root)
    except (UserError, OSError):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 10, n)
        return rng.normal(size=(10, 784)).astype(np.float32)[y] * 0.1 + rng.random((n, 784), np.float32), y, "mixture"
    split = data.splits["train"]
    n = min(n, len(split))
    start = seed * n % (len(split) - n + 1)
    images = np.stack(split.images(start, start + n)).reshape(n, 28, 28, 3)[..., 0]
    return images.reshape(n, -1).astype(np.float32) / 255, split.labels[start : start + n], "Fashion-MNIST"


def features(case, root, seed=0):
    """X (n, d) float32 and labels of a case, and what they are made of."""
    n, d, K = case
    raw, y, source = pictures(root, n, seed)
    rng = np.random.default_rng(1 + seed)
    X = np.maximum(raw @ rng.normal(size=(raw.shape[1], d)).astype(np.float32) / 28, 0)
    if K > 10:
        # labels of K classes: the nearest of K random pictures, in pixels, so that classes overlap as real ones do
        centres = raw[rng.choice(len(raw), K, replace=False)]
        y = ((raw**2).sum(1)[:, None] - 2 * raw @ centres.T + (centres**2).sum(1)).argmin(axis=1)
        source += f", nearest of {K} pictures"
    return np.ascontiguousarray(X), np.unique(y, return_inverse=True)[1], source + (f", seed {seed}" if seed else "")


def objective(X, y, coef, intercept, C):
    """Mean cross-entropy plus |coef|^2 / (2 n C), float64; one row of coefficients for two classes."""
    coef, intercept = np.asarray(coef, np.float64), np.asarray(intercept, np.float64)
    z = X.astype(np.float64) @ coef.T + intercept
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    top = z.max(axis=1)
    log_total = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
    return float((log_total - z[np.arange(len(y)), y]).mean() + 0.5 * (coef**2).sum() / (len(y) * C))


class OutOfTimeError(Exception):
    """The peer has spent its CPU seconds."""


def within(limit, work):
    """CPU seconds and the result of work(); the result is None where it took longer than `limit` CPU seconds."""

    def stop(*_):
        raise OutOfTimeError

    if limit <= 0:
        return 0.0, None
    before, start = signal.signal(signal.SIGPROF, stop), time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, min(limit, 1e6))
        result = work()
    except OutOfTimeError:
        result = None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return time.process_time() - start, result


def run_peer(way, X, y, Cs, goals, limit):
    """Run one way to fit the penalties Cs, ascending, each to its objective of `goals` where it is timed at `equal`.

    Returns the CPU seconds, and the objectives of the penalties done.
    """
    name, start, until = way
    if name == "LogisticRegressionCV":
        seconds, fits = within(limit, lambda: logistic_regression_cv(X, y, Cs))
        return seconds, [objective(X, y, coef, b, C) for (coef, b), C in zip(fits or [], Cs, strict=False)]
    spent, reached = 0.0, list[float]()
    fit = PEERS[name](X, y)
    for C, goal in zip(Cs, goals, strict=True):
        for tol in LADDER if until == "equal" else LADDER[:1]:
            cold = start == "cold" and tol == LADDER[0]
            seconds, theta = within(limit - spent, lambda C=C, tol=tol, cold=cold: fit(C, tol, cold))
            spent += seconds
            if theta is None:
                return spent, reached
            value = objective(X, y, theta[0], theta[1], C)
            if value <= goal * (1 + EQUAL):
                break
        reached.append(value)
    return spent, reached


def verdict(peer, total, excess, seconds, ours):
    """Yield the rows of a peer that did len(excess) of `total` fits in its CPU seconds; ours did them all."""
    excess = np.asarray(excess)
    yield f"{peer}, fits done of {total}", len(excess)
    yield f"{peer}, fits at an equal or better objective", (excess <= EQUAL).sum()
    yield f"{peer}, CPU s", seconds
    yield f"{peer}, {'CPU s' if len(excess) == total else 'stopped at CPU s'} / ours", seconds / ours
    if len(excess):
        yield f"{peer}, largest (theirs - ours) / ours", excess.max()


def compare(what, X, y, Cs, ways, limit, times=np.inf):
    """Yield the rows of ours and of each peer on one matrix; a peer has `limit` CPU seconds, or `times` ours."""
    few = slice(0, 1 + (1 << 19) // X.shape[1])  # first calls load libraries
    fit_path(X[few], y[few] % 2, Cs[:2])
    LogisticRegression(C=1e-3).fit(X[few], y[few] % 2)
    ours, path = timed(lambda: fit_path(X, y, Cs))
    yield f"{what} ours, CPU s", ours
    yield f"{what} ours, share of fits certified", path.converged.mean()
    yield f"{what} ours, ns per entry of X and penalty", 1e9 * ours / (X.size * len(Cs))
    goals = np.array([objective(X, y, path.coef[i], path.intercept[i], C) for i, C in enumerate(Cs)])
    best = None
    for way in ways:
        R = 1 if y.max() == 1 else y.max() + 1
        if way[0] == "newton-cholesky" and 8 * (R * (X.shape[1] + 1)) ** 2 > HESSIAN_BYTES:
            continue
        seconds, reached = run_peer(way, X, y, Cs, goals, min(limit, times * ours))
        excess = np.array(reached) / goals[: len(reached)] - 1
        yield from verdict(f"{what} {way[0]} {way[1]}, {way[2]}", len(Cs), excess, seconds, ours)
        if (excess <= EQUAL).all() and (best is None or seconds < best[0]):
            best = seconds, f"{'at least ' if len(reached) < len(Cs) else ''}{way[0]} {way[1]}"
    if best:
        yield f"{what} fastest peer at an equal objective ({best[1]}), CPU s / ours", best[0] / ours


def measure(name, options):
    """Yield the rows of one case, raw and standardised."""
    case = (TOYS if options.toy else CASES)[name]
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        X, y, source = X[: case[0]].astype(np.float32), y[: case[0]], "scikit-learn's digits"
    else:
        X, y, source = features(case, options.root, options.seed)
    Cs = CS[4::9] if options.toy else CS
    ways = [way for way in WAYS if options.ways is None or " ".join(way) in options.ways]
    for kind in ("raw", "standardised"):
        if options.only in (None, kind):
            Z = StandardScaler().fit_transform(X).astype(np.float32) if kind == "standardised" else X
            what = f"{name} {len(X)}x{X.shape[1]}, {y.max() + 1} classes, {len(Cs)} penalties, {source}, {kind}, "
            what += f"scikit-learn {sklearn.__version__}:"
            yield from compare(what, Z, y, Cs, ways, options.limit, options.times)


def whole_sweep(options, folder):
    """Yield the rows of a sweep of a feature file, layers x folds x grid, ours and the loops a user would write.

    A loop fits, for each layer and each of five folds, a scaler and a path from strong to weak, and scores the held-out
    rows. What it also would do, a refit and the test rows, is ours alone here.
    """
    n, d, L = (400, 12, 2) if options.toy else (4_000, 128, 3)
    X, y, source = features((n + n // 4, d, 10), options.root, options.seed)
    rng = np.random.default_rng(0)
    # layers from useful to noisy
    layers = [(X + 0.5 * layer * X.std() * rng.normal(size=X.shape)).astype(np.float32) for layer in range(L)]
    order = rng.permutation(len(X))
    train, test = order[:n], order[n:]
    parts = {name: ({f"layer{k}": Z[rows] for k, Z in enumerate(layers)}, y[rows])
             for name, rows in (("train", train), ("test", test))}  # fmt: skip
    store = FeatureStore.from_arrays(folder / "features.h5", parts)
    what = f"sweep of {L} layers of {n}x{d}, 10 classes, {len(CS)} penalties, five folds, {source}, "
    what += f"scikit-learn {sklearn.__version__}:"
    ours, results = timed(lambda: sweep(store, folder / "results", protocol="igpt", workers=1))
    yield f"{what} ours, CPU s", ours
    yield f"{what} ours, share of final fits certified", np.mean([record.is_converged for record in results])
    weights, rounds = np.ones((d, 10), np.float32), []
    for Z in layers:
        for rows, held in StratifiedKFold(5, shuffle=True, random_state=0).split(train, y[train]):
            scaler = StandardScaler().fit(Z[train][rows])
            fitted, shown = (scaler.transform(Z[train][part]).astype(np.float32) for part in (rows, held))
            path = fit_path(fitted, y[train][rows], CS)
            goals = [objective(fitted, y[train][rows], path.coef[i], path.intercept[i], C) for i, C in enumerate(CS)]
            rounds.append((fitted, y[train][rows], shown, goals))
    for way in (("newton-cg", "warm", "default"), ("lbfgs", "warm", "default"), ("newton-cg", "warm", "equal"),
                ("lbfgs", "warm", "equal")):  # fmt: skip
        spent, excesses, limit = 0.0, [], min(options.limit, options.times * ours)
        for fitted, labels, shown, goals in rounds:
            seconds, reached = run_peer(way, fitted, labels, CS, goals, limit - spent)
            excesses.extend(np.array(reached) / goals[: len(reached)] - 1)
            spent += seconds + timed(lambda shown=shown: [(shown @ weights).argmax(1) for _ in CS])[0]
        yield from verdict(f"{what} loop of {' '.join(way)}", len(rounds) * len(CS), excesses, spent, ours)


def scaling(root, toy):
    """Yield ours alone over n, d, K and the number of penalties, each with the slope of a log-log line."""
    n, d, P = (600, 24, 9) if toy else (10_000, 128, 45)
    axes = {
        "rows": [(n * k, d, 10, P) for k in (1, 2, 4)],
        "features": [(n, d * k, 10, P) for k in (1, 2, 4)],
        "classes": [(n, d, 10 * k, P) for k in (1, 2, 4)],
        "penalties": [(n, d, 10, P * k) for k in (1, 2, 4)],
    }
    for axis, cases in axes.items():
        seconds = []
        for n_, d_, K, n_penalties in cases:
            X, y, _ = features((n_, d_, K), root)
            Cs = 1 / (len(X) * np.logspace(1, -6, n_penalties))
            cpu, path = timed(lambda X=X, y=y, Cs=Cs: fit_path(X, y, Cs, tol=TOL))
            seconds.append(cpu)
            yield f"scaling over {axis}: {len(X)}x{d_}, {K} classes, {n_penalties} penalties, s of CPU", cpu
            yield (
                f"scaling over {axis}: {len(X)}x{d_}, {K} classes, {n_penalties} penalties, share certified",
                path.converged.mean(),
            )
        slope = np.polyfit(np.log([1, 2, 4]), np.log(seconds), 1)[0]
        yield f"scaling over {axis}: slope of log seconds over log {axis}", slope


CASES = {"digits": (1797, 64, 10), "fashion": (10_000, 256, 10), "large": (50_000, 512, 10),
         "classes": (20_000, 768, 100)}  # fmt: skip
TOYS = {"digits": (300, 64, 10), "fashion": (600, 16, 10), "large": (900, 24, 10), "classes": (900, 24, 20)}


def main():
    line = parser(__doc__)
    line.add_argument("cases", nargs="*", default=["digits", "fashion"], help=f"{', '.join(CASES)}, sweep, scaling")
    line.add_argument("--root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    line.add_argument("--seed", type=int, default=0)
    line.add_argument("--only", choices=("raw", "standardised"))
    line.add_argument("--ways", nargs="*", choices=[" ".join(way) for way in WAYS], metavar="WAY")
    line.add_argument("--limit", type=float, default=float("inf"), help="CPU seconds a peer")
    line.add_argument("--times", type=float, default=float("inf"), help="CPU seconds a peer, in ours")
    line.add_argument("--toy", action="store_true")
    options = line.parse_args()
    torch.set_num_threads(1)
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            if name == "scaling":
                rows = scaling(options.root, options.toy)
            else:
                rows = whole_sweep(options, Path(folder)) if name == "sweep" else measure(name, options)
            print(table(record("path_speed_toy" if options.toy else "path_speed", rows)))


if __name__ == "__main__":
    main()
