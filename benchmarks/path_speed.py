"""Whole penalty paths, ours and every peer's in one run: `python benchmarks/path_speed.py [CASE ...] [--threads N]`.

Cases, each on raw and on standardised features (`--only raw|standardised`), with the penalties of the `igpt` protocol
(C = logspace(-6, 5, 45)):
- `fashion` 10,000 x 256, `large` 50,000 x 512, `classes` 20,000 x 768 with 100 classes. Features are rectified random
  projections of Fashion-MNIST pictures (the folder `--root`, or a Gaussian mixture of the same shape where it is
  absent: the row says which), float32 for all; `--seed` draws other projections of other pictures.
- `sweep`: a feature file of 6 layers swept with five folds and the whole grid, against the loop that a user would write
  with scikit-learn's warm-started lbfgs.
- `scaling`: ours alone, slopes in n, d, K and penalties.

Peers (`--peers` chooses) are those of peers.py. Where a whole path is too slow, they fit every k-th penalty and the
time is scaled, which flatters cold starts little and warm ones not at all (the row says so); a peer that has spent
`--peer-seconds` stops, and its time is a lower bound. Ours is certified to a relative gap of 1e-5. Every objective is
computed in float64 by one function. `ratio to the best peer` is to the fastest one whose objectives ours equals or
betters, within 1e-5, at every penalty that it fitted. Rows go to benchmarks/results/path_speed.csv; `--toy` shrinks
every case to seconds.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from peers import PEERS
from rows import record
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from probekit import load_dataset
from probekit.probes import fit_path, get_protocol
from probekit.runtime.errors import UserError

TOL = 1e-5  # of ours: the relative objective gap that the comparison allows
PENALTIES = np.logspace(1, -6, 45)  # l2 of the mean loss, of the scaling case
CS = np.array(get_protocol("igpt").Cs)  # of what a sweep solves


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


def timed(work):
    """Seconds of wall time and of CPU time, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def run_peer(peer, X, y, Cs, limit):
    """Seconds, fits done, and (index, coef, intercept) of each; stops when `limit` seconds are spent."""
    fits, steps, spent = [], iter(peer(X, y, Cs)), 0.0
    while spent < limit:
        wall, _, fitted = timed(lambda: next(steps, None))
        spent += wall
        if fitted is None:
            break
        fits.append(fitted)
    return spent, fits


def compare(what, X, y, Cs, peers, every, limit):
    """Yield the rows of ours and of each peer on one matrix; peers fit every `every`-th penalty."""
    few = slice(0, 1 + (1 << 19) // X.shape[1])  # first calls load libraries and wake all threads
    fit_path(X[few], y[few] % 2, Cs[:2])
    LogisticRegression(C=1e-3).fit(X[few], y[few] % 2)
    wall, cpu, path = timed(lambda: fit_path(X, y, Cs, tol=TOL))
    yield f"{what} ours, s", wall
    yield f"{what} ours, s of CPU", cpu
    yield f"{what} ours, share of fits certified", path.converged.mean()
    yield f"{what} ours, ns per entry of X and penalty", 1e9 * wall / (X.size * len(Cs))
    picked = np.arange(every // 2, len(Cs), every)
    ours = np.array([objective(X, y, path.coef[i], path.intercept[i], Cs[i]) for i in picked])
    best = None
    for name in peers:
        spent, fits = run_peer(PEERS[name], X, y, Cs[picked], limit)
        if not fits:
            continue
        scale = len(Cs) / len(fits)
        done = np.array([i for i, _, _ in fits])
        theirs = np.array([objective(X, y, coef, intercept, Cs[picked[i]]) for i, coef, intercept in fits])
        short = len(fits) < len(picked)
        note = f" (at least: stopped after {limit:g} s, {len(fits)} of {len(picked)} fits)" if short else ""
        if every > 1:
            note += f" (one penalty in {every}, scaled by {scale:.3g})"
        # a peer that was stopped has its weak penalties, the slow ones, still to come: no scaling up
        seconds = spent * len(Cs) / len(picked) if short else spent * scale
        excess = float(((ours[done] - theirs) / theirs).max())
        yield f"{what} {name}, s{note}", seconds
        yield f"{what} {name}, largest (ours - theirs) / theirs", excess
        yield f"{what} {name}, largest (theirs - ours) / ours", float(((theirs - ours[done]) / ours[done]).max())
        yield f"{what} {name}, ratio of wall time{note}", seconds / wall
        if excess <= TOL and (best is None or seconds < best[0]):
            best = seconds, name
    if best:
        yield f"{what} ratio to the best peer ({best[1]})", best[0] / wall


def measure(name, options):
    """Yield the rows of one case, raw and standardised."""
    case, every = (TOYS if options.toy else CASES)[name]
    X, y, source = features(case, options.root, options.seed)
    for kind in ("raw", "standardised"):
        if options.only in (None, kind):
            Z = StandardScaler().fit_transform(X).astype(np.float32) if kind == "standardised" else X
            what = f"{name} {len(X)}x{X.shape[1]}, {y.max() + 1} classes, {len(CS)} penalties, {source}, {kind}:"
            yield from compare(what, Z, y, CS, options.peers, options.every or every, options.peer_seconds)


def user_loop(layers, y, test_y, Cs, folds):
    """What a user would write: per layer five folds, a scaler and a warm-started path each, the best C, a refit."""
    accuracies = []
    for X, test in layers:
        scores = np.zeros(len(Cs))
        for train, held in folds:
            scaler = StandardScaler().fit(X[train])
            model = LogisticRegression(max_iter=1000, warm_start=True)
            fitted, shown = scaler.transform(X[train]), scaler.transform(X[held])
            for i, C in enumerate(Cs):
                scores[i] += model.set_params(C=C).fit(fitted, y[train]).score(shown, y[held])
        scaler = StandardScaler().fit(X)
        model = LogisticRegression(C=Cs[scores.argmax()], max_iter=1000).fit(scaler.transform(X), y)
        accuracies.append(model.score(scaler.transform(test), test_y))
    return accuracies


def whole_sweep(options, folder):
    """Yield the rows of a sweep of a feature file, layers x folds x grid, ours and the user's loop."""
    from probekit import FeatureStore, sweep

    n, d, L = (400, 12, 2) if options.toy else (6_000, 192, 6)
    X, y, source = features((n + n // 4, d, 10), options.root, options.seed)
    rng = np.random.default_rng(0)
    # layers from useful to noisy
    layers = [(X + 0.5 * layer * X.std() * rng.normal(size=X.shape)).astype(np.float32) for layer in range(L)]
    order = rng.permutation(len(X))
    train, test = order[:n], order[n:]
    store = FeatureStore.from_arrays(
        folder / "features.h5",
        {
            "train": ({f"layer{k}": Z[train] for k, Z in enumerate(layers)}, y[train]),
            "test": ({f"layer{k}": Z[test] for k, Z in enumerate(layers)}, y[test]),
        },
    )
    what = f"sweep of {L} layers of {n}x{d}, 10 classes, {len(CS)} penalties, five folds, {source}:"
    wall, _, results = timed(lambda: sweep(store, folder / "results", protocol="igpt"))
    yield f"{what} ours, s", wall
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(train, y[train]))
    pairs = [(Z[train], Z[test]) for Z in layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _, accuracies = timed(lambda: user_loop(pairs, y[train], y[test], CS, folds))
    yield f"{what} a user's loop over warm-started lbfgs, s", theirs
    yield f"{what} ratio of wall time", theirs / wall
    ours = [record.accuracy for record in results]
    yield f"{what} mean test accuracy, ours - the loop's, points", 100 * (np.mean(ours) - np.mean(accuracies))


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
            _, cpu, path = timed(lambda X=X, y=y, Cs=Cs: fit_path(X, y, Cs, tol=TOL))
            seconds.append(cpu)
            yield f"scaling over {axis}: {len(X)}x{d_}, {K} classes, {n_penalties} penalties, s of CPU", cpu
            yield (
                f"scaling over {axis}: {len(X)}x{d_}, {K} classes, {n_penalties} penalties, share certified",
                path.converged.mean(),
            )
        slope = np.polyfit(np.log([1, 2, 4]), np.log(seconds), 1)[0]
        yield f"scaling over {axis}: slope of log seconds over log {axis}", slope


CASES = {"fashion": ((10_000, 256, 10), 3), "large": ((50_000, 512, 10), 9), "classes": ((20_000, 768, 100), 15)}
TOYS = {"fashion": ((600, 16, 10), 9), "large": ((900, 24, 10), 15), "classes": ((900, 24, 20), 15)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["fashion"], help="fashion, large, classes, sweep, scaling")
    parser.add_argument("--root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("raw", "standardised"))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    parser.add_argument("--peer-seconds", type=float, default=float("inf"))
    parser.add_argument("--every", type=int, help="peers fit every k-th penalty")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.cases:
        if name == "scaling":
            rows = scaling(options.root, options.toy)
        elif name == "sweep":
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                record("path_speed_toy" if options.toy else "path_speed", whole_sweep(options, Path(folder)))
            continue
        else:
            rows = measure(name, options)
        record("path_speed_toy" if options.toy else "path_speed", rows)


if __name__ == "__main__":
    main()
