"""Whole penalty paths, ours and scikit-learn's in one run: `python benchmarks/path_speed.py [CASE ...] [--threads N]`.

Features are rectified random projections of Fashion-MNIST pictures (the folder `--root`, or a Gaussian mixture of the
same shape where it is absent: the row says which), float32 for both. scikit-learn fits `LogisticRegression(lbfgs,
max_iter=1000, tol=1e-4)` for each penalty; ours fits all, certified to a relative gap of 1e-5. Every objective is then
computed in float64 by one function; the row `objective excess` is the largest (ours - theirs) / theirs.

Cases: `fashion` 10,000 x 256; `large` 50,000 x 512 and `classes` 20,000 x 768 with 100 classes, where the peer fits
only some of the penalties, evenly spread, and its time is scaled (the row says so); `scaling`, ours alone: slopes in n,
d, K and penalties. Rows go to benchmarks/results/path_speed*.csv. `--toy` shrinks every case to seconds.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from rows import record
from sklearn.linear_model import LogisticRegression

from probekit import load_dataset
from probekit.probes import fit_path
from probekit.runtime.errors import UserError

TOL = 1e-5  # of ours: the relative objective gap that the comparison allows
PENALTIES = np.logspace(1, -6, 45)  # l2 of the mean loss


def pictures(root, n):
    """(n, 784) float32 pictures in [0, 1] and labels; a mixture of ten Gaussians where Fashion-MNIST is not found."""
    try:
        data = load_dataset("fashion-mnist", root=root)
    except (UserError, OSError):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 10, n)
        return rng.normal(size=(10, 784)).astype(np.float32)[y] * 0.1 + rng.random((n, 784), np.float32), y, "mixture"
    split = data.splits["train"]
    images = np.stack(split.images(0, min(n, len(split)))).reshape(-1, 28, 28, 3)[..., 0]
    return images.reshape(len(images), -1).astype(np.float32) / 255, split.labels[: len(images)], "Fashion-MNIST"


def features(case, root):
    """X (n, d) float32 and labels of a case, and what they are made of."""
    n, d, K = case
    raw, y, source = pictures(root, n)
    rng = np.random.default_rng(1)
    X = np.maximum(raw @ rng.normal(size=(raw.shape[1], d)).astype(np.float32) / 28, 0)
    if K > 10:
        # labels of K classes: the nearest of K random pictures, in pixels, so that classes overlap as real ones do
        centres = raw[rng.choice(len(raw), K, replace=False)]
        y = ((raw**2).sum(1)[:, None] - 2 * raw @ centres.T + (centres**2).sum(1)).argmin(axis=1)
        source += f", nearest of {K} pictures"
    return np.ascontiguousarray(X), y, source


def objective(X, y, coef, intercept, l2):
    """Mean cross-entropy plus l2 / 2 |coef|^2, float64."""
    z = X.astype(np.float64) @ coef.T + intercept
    top = z.max(axis=1)
    log_total = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
    return float((log_total - z[np.arange(len(y)), y]).mean() + 0.5 * l2 * (coef**2).sum())


def timed(work):
    """Seconds of wall time and of CPU time, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(name, case, root, every, penalties=PENALTIES):
    """Yield the rows of one case; the peer fits every `every`-th penalty."""
    X, y, source = features(case, root)
    n, d = X.shape
    y = np.unique(y, return_inverse=True)[1]
    Cs = 1 / (n * penalties)
    what = f"{name} {n}x{d}, {y.max() + 1} classes, {len(penalties)} penalties, {source}:"
    few = slice(0, 1 + (1 << 19) // d)  # first calls load libraries and wake all threads
    fit_path(X[few], y[few] % 2, Cs[:2])
    LogisticRegression(C=1e-3).fit(X[few], y[few] % 2)
    wall, cpu, path = timed(lambda: fit_path(X, y, Cs, tol=TOL))
    yield f"{what} ours, s", wall
    yield f"{what} ours, s of CPU", cpu
    yield f"{what} ours, fits certified", path.converged.sum()
    theirs_wall = theirs_cpu = 0.0
    excess, stopped = [], 0
    picked = range(every // 2, len(Cs), every)
    for i in picked:
        model = LogisticRegression(C=Cs[i], max_iter=1000, tol=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wall_i, cpu_i, _ = timed(lambda model=model: model.fit(X, y))
        theirs_wall, theirs_cpu = theirs_wall + wall_i, theirs_cpu + cpu_i
        stopped += int(model.n_iter_.max() >= 1000)
        ours = objective(X, y, path.coef[i].astype(np.float64), path.intercept[i], penalties[i])
        peer = objective(X, y, model.coef_.astype(np.float64), model.intercept_, penalties[i])
        excess.append((ours - peer) / peer)
    scale = len(Cs) / len(picked)
    note = "" if every == 1 else f" (measured on {len(picked)} penalties, scaled by {scale:.3g})"
    yield f"{what} scikit-learn, s{note}", theirs_wall * scale
    yield f"{what} scikit-learn, s of CPU{note}", theirs_cpu * scale
    yield f"{what} scikit-learn, fits stopped at 1,000 iterations", stopped
    yield f"{what} objective excess, largest (ours - theirs) / theirs", max(excess)
    yield f"{what} ratio of wall time{note}", theirs_wall * scale / wall
    yield f"{what} ratio of CPU time{note}", theirs_cpu * scale / cpu


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


CASES = {"fashion": ((10_000, 256, 10), 1), "large": ((50_000, 512, 10), 5), "classes": ((20_000, 768, 100), 15)}
TOYS = {"fashion": ((600, 16, 10), 1), "large": ((900, 24, 10), 5), "classes": ((900, 24, 20), 15)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["fashion"], help="fashion, large, classes, scaling")
    parser.add_argument("--root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.cases:
        if name == "scaling":
            rows = scaling(options.root, options.toy)
        else:
            case, every = (TOYS if options.toy else CASES)[name]
            rows = measure(name, case, options.root, every)
        record("path_speed_toy" if options.toy else "path_speed", rows)


if __name__ == "__main__":
    main()
