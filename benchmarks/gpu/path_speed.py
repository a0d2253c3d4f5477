"""Whole penalty paths on a GPU: `python benchmarks/gpu/path_speed.py [PART ...] [--minutes M] [--features FILE]`.

Parts, in order of worth:
- layers: 25 layers x 45 penalties (l2 of the mean loss from 1e-6 to 10) of 50,000 x 512, 10 classes. Ours, certified to
  a relative gap of 1e-5, against `torch.optim.LBFGS`: float32, strong Wolfe, at most 1,000 iterations, PyTorch's own
  tolerances, and stopped as soon as its objective is within 1e-5 of ours, whichever comes first. Cold-started for each
  penalty with history 10, and along the whole path from strong to weak, each from the one before, with history 100.
  The cold one fits some penalties, evenly spread, both fit some layers, and their time is scaled (the rows say so);
  so is ours, when it has not been through all layers after `--layer-minutes`.
- imagenet: one layer of 1,536 columns and 1,000 classes, 45 penalties, on ever more rows up to 1,281,167, as long as
  the next size should end within `--minutes`; the slope over rows, and what all rows would take.
- cuml: cuML's LogisticRegression on one layer, where it is installed, at an equal gap: its tolerance is lowered from
  1e-4 to 1e-7 until its objective is within 1e-5 of ours, and only the fit that first is counts.

Objectives are computed in float64 by one function. Features are made on the device: K class centres and spherical noise
in 256 dimensions whose deviations fall as j^-1/2, times a random matrix of the layer, rectified; all from a seed.
`--features FILE` takes a feature file's layers instead, standardised. Rows go to benchmarks/results/gpu/path_speed.csv.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.parts import command_line, read, run, timed
from path_speed import PENALTIES, TOL

from probekit import FeatureStore
from probekit.probes import fit_path

PARTS = ("layers", "imagenet", "cuml")


@dataclass(frozen=True)
class Sizes:
    """What is solved: layers x penalties of n x d, K classes; layers that the peer fits, and every which penalty."""

    layers: int = 25
    n: int = 50_000
    d: int = 512
    K: int = 10
    peer_layers: int = 2
    every: int = 5
    max_iter: int = 1000
    rows: tuple = (5_005, 20_018, 80_073, 320_292, 1_281_167)
    columns: int = 1536
    classes: int = 1000
    penalties: tuple = tuple(PENALTIES)


TOY = Sizes(3, 1500, 24, 10, 1, 4, 200, (400, 800, 1600), 24, 12, tuple(np.logspace(1, -5, 9)))


def made_up(n, d, K, device, seed=0, layer=0, inner=256):
    """X (n, d) float32 and y (n,) on the device: rectified random projections of classes that overlap."""
    generator = torch.Generator(device=device).manual_seed(seed)
    draw = partial(torch.randn, generator=generator, device=device)
    y = torch.randint(K, (n,), generator=generator, device=device)
    y[:K] = torch.arange(K, device=device)  # no class is empty
    deviations = torch.arange(1, inner + 1, device=device).float() ** -0.5
    inputs = (0.7 * draw(K, inner)[y] + draw(n, inner)) * (deviations / deviations.square().sum().sqrt())
    generator.manual_seed(1000 + 1000 * seed + layer)
    return torch.mm(inputs, draw(inner, d)).add_(0.2 * draw(d)).relu_(), y


def layers_of(sizes, device, features):
    """Yield X, y of each layer, on the device."""
    if features is None:
        for layer in range(sizes.layers):
            yield made_up(sizes.n, sizes.d, sizes.K, device, layer=layer)
        return
    with FeatureStore.open(features) as store:
        for name in store.layers[: sizes.layers]:
            X, y = (torch.from_numpy(values[: sizes.n]).to(device) for values in store.read("train", name))
            yield (X - X.mean(0)) / X.std(0).clamp_min(1e-6), y


@torch.no_grad()
def objective(X, y, coef, intercept, l2):
    """Mean cross-entropy plus l2 / 2 |coef|^2 in float64, for classes 0 to K - 1."""
    coef, intercept = (torch.as_tensor(values).to(X.device, torch.float64) for values in (coef, intercept))
    total = 0.0
    for rows in torch.arange(len(X), device=X.device).split(1 << 16):
        z = X[rows].double() @ coef.T + intercept
        total += float(torch.nn.functional.cross_entropy(z, y[rows], reduction="sum"))
    return total / len(X) + 0.5 * l2 * float(coef.square().sum())


def accuracy(X, y, coef, intercept):
    """Share of rows told rightly by one probe."""
    coef, intercept = (torch.as_tensor(values).to(X.device, X.dtype) for values in (coef, intercept))
    return float((X @ coef.T + intercept).argmax(1).eq(y).double().mean())


class ReachedError(Exception):
    """The peer is as good as ours: stop its clock."""


def lbfgs(X, y, K, l2, goal, max_iter, start=None):
    """Coefficients, intercepts, evaluations of one fit, from zero or from `start`, and whether it came to `goal`."""
    cold = (torch.zeros(K, X.shape[1], device=X.device), torch.zeros(K, device=X.device))
    W, b = (part.clone().requires_grad_() for part in start or cold)
    history = 100 if start else 10
    optimizer = torch.optim.LBFGS([W, b], max_iter=max_iter, history_size=history, line_search_fn="strong_wolfe")
    evaluations = 0

    def closure():
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.addmm(b, X, W.T), y) + 0.5 * l2 * W.square().sum()
        loss.backward()
        if loss.item() <= goal:
            raise ReachedError
        return loss

    try:
        optimizer.step(closure)
    except ReachedError:
        return W.detach(), b.detach(), evaluations, True
    return W.detach(), b.detach(), evaluations, False


def solve(X, y, penalties, device):
    """Our whole path: seconds and the path."""
    Cs = 1 / (len(X) * np.asarray(penalties))
    return timed(lambda: fit_path(X, y, Cs, tol=TOL, device=device), device)


def peers(X, y, path, sizes, device, warm):
    """Seconds of the peer on a layer; of each fit its evaluations, whether it came to ours, our excess over it.

    On some of the penalties from zero, or on all from strong to weak, each from the one before.
    """
    theirs, told, K, start = 0.0, [], int(y.max()) + 1, None
    some = range(sizes.every // 2, len(sizes.penalties), sizes.every)
    for i in np.argsort(sizes.penalties)[::-1] if warm else some:
        l2 = sizes.penalties[i]
        own = objective(X, y, path.coef[i], path.intercept[i], l2)
        fit = partial(lbfgs, X, y, K, l2, own * (1 + TOL), sizes.max_iter, start)
        took, (W, b, calls, reached) = timed(fit, device)
        start = (W, b) if warm else None
        theirs += took
        peer = objective(X, y, W, b, l2)
        told.append((calls, reached, (own - peer) / peer))
    return theirs, told


def layers(sizes, device, features, minutes):
    """Rows of all layers, ours and the peer; layers after so many minutes of solving are left out and scaled for."""
    penalties = np.asarray(sizes.penalties)
    X, y = made_up(2000, 64, sizes.K, device)
    solve(X, y, penalties[:: sizes.every], device)  # first calls load libraries
    lbfgs(X, y, sizes.K, 0.1, 0.0, 3)
    ours, certified, gaps, accuracies, memory = list[float](), [], [], [], 0
    theirs: dict[str, list] = {"cold": [], "warm": []}
    told: dict[str, list] = {"cold": [], "warm": []}
    for layer, (X, y) in enumerate(layers_of(sizes, device, features)):
        if sum(ours) > 60 * minutes:
            break
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took, path = solve(X, y, penalties, device)
        if device == "cuda":
            memory = max(memory, torch.cuda.max_memory_allocated())
        yield f"layer {layer}: ours, s", took
        ours.append(took)
        certified.append(path.converged.mean())
        gaps.append(path.certificates["gap"].max())
        (n, d), K = X.shape, int(y.max()) + 1
        accuracies.append(accuracy(X, y, path.coef[penalties.argmin()], path.intercept[penalties.argmin()]))
        if len(theirs["cold"]) < sizes.peer_layers and layer % (sizes.layers // sizes.peer_layers) == 0:
            for how in theirs:
                seconds, found = peers(X, y, path, sizes, device, how == "warm")
                yield f"layer {layer}: torch.optim.LBFGS {how}, s of {len(found)} penalties", seconds
                theirs[how].append(seconds)
                told[how].extend(found)
    whole = sizes.layers if features is None else layer + 1
    source = "made-up features" if features is None else Path(features).name
    what = f"{whole} layers of {n}x{d}, {K} classes, {len(penalties)} penalties, {source}:"
    yield f"{what} training accuracy at the weakest penalty", np.mean(accuracies)
    scale = whole / len(ours)
    note = "" if scale == 1 else f" (measured on {len(ours)} layers, scaled by {scale:.3g})"
    yield f"{what} ours, s (goal 20){note}", sum(ours) * scale
    yield f"{what} ours, s of the slowest layer", max(ours)
    yield f"{what} ours, share of fits certified", np.mean(certified)
    yield f"{what} ours, largest relative gap", max(gaps)
    if memory:
        yield f"{what} ours, largest memory, GiB", memory / 2**30
    for how, seconds in theirs.items():
        evaluations, reached, excess = np.array(told[how]).T
        scaled, peer = whole * len(penalties) / len(excess), f"{what} torch.optim.LBFGS {how}"
        note = f" ({len(seconds)} layers, {len(excess)} fits, scaled by {scaled:.4g})"
        yield f"{peer}, s{note}", sum(seconds) * scaled
        yield f"{peer}, evaluations a fit", evaluations.mean()
        yield f"{peer}, share that came within 1e-5 of ours", reached.mean()
        yield f"{peer}, objective excess, largest (ours - theirs) / theirs", excess.max()
        yield f"{peer}, ratio{' (goal 10)' if how == 'warm' else ''}{note}", sum(seconds) * scaled / (sum(ours) * scale)


def imagenet(sizes, device, minutes):
    """Rows of one wide layer over growing numbers of rows, within about so many minutes."""
    spent, counts, seconds = 0.0, list[int](), list[float]()
    for n in sizes.rows:
        if seconds:
            slope = max(np.polyfit(np.log(counts[-2:]), np.log(seconds[-2:]), 1)[0], 1.0) if len(seconds) > 1 else 1.0
            following = seconds[-1] * (n / counts[-1]) ** slope
            if spent + following > 60 * minutes:
                yield f"{n} rows are left out: expected s", following
                break
        X, y = made_up(n, sizes.columns, sizes.classes, device)
        what = f"{n}x{sizes.columns}, {sizes.classes} classes, {len(sizes.penalties)} penalties:"
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took, path = solve(X, y, sizes.penalties, device)
        spent += took
        counts.append(n)
        seconds.append(took)
        yield f"{what} ours, s (goal 600 at 1,281,167 rows)", took
        yield f"{what} share of fits certified", path.converged.mean()
        yield f"{what} largest relative gap", path.certificates["gap"].max()
        yield f"{what} passes a penalty, mean", path.certificates["n_iter"].mean()
        if device == "cuda":
            yield f"{what} largest memory, GiB", torch.cuda.max_memory_allocated() / 2**30
        print(f"    {path.plan}", flush=True)
        if spent > 60 * minutes:
            break
    if len(seconds) > 1:
        slope = np.polyfit(np.log(counts[-2:]), np.log(seconds[-2:]), 1)[0]
        yield "slope of log seconds over log rows, last two sizes", slope
        full = sizes.rows[-1]
        note = "measured" if counts[-1] == full else f"by that slope from {counts[-1]} rows"
        yield f"{full} rows, s ({note}; goal 600)", seconds[-1] * (full / counts[-1]) ** slope


def cuml(sizes, device, features):
    """Rows of cuML on the first layer."""
    try:
        from cuml.linear_model import LogisticRegression
    except ImportError:
        yield "cuML is installed (0: not, so nothing is measured)", 0
        return
    import cupy

    yield "cuML is installed (0: not, so nothing is measured)", 1
    penalties = np.asarray(sizes.penalties)
    X, y = next(layers_of(sizes, device, features))
    solve(X, y, penalties, device)
    ours, path = solve(X, y, penalties, device)
    theirs, excess = 0.0, []
    on_gpu = cupy.asarray(X), cupy.asarray(y.float())
    picked = range(sizes.every // 2, len(penalties), sizes.every)
    LogisticRegression(C=1.0, max_iter=2).fit(*on_gpu)
    for i in picked:
        own = objective(X, y, path.coef[i], path.intercept[i], penalties[i])
        for tol in (1e-4, 1e-5, 1e-6, 1e-7):
            model = LogisticRegression(C=1 / (len(X) * penalties[i]), tol=tol, max_iter=5000, output_type="numpy")
            took = timed(partial(model.fit, *on_gpu), device)[0]
            peer = objective(X, y, model.coef_, model.intercept_, penalties[i])
            if peer <= own * (1 + TOL):
                break
        theirs += took
        excess.append((peer - own) / own)
    scale = len(penalties) / len(picked)
    what = f"one layer of {X.shape[0]}x{X.shape[1]}:"
    yield f"{what} ours, s", ours
    yield f"{what} cuML, s ({len(picked)} penalties, scaled by {scale:.3g})", theirs * scale
    yield f"{what} cuML, share that came within 1e-5 of ours", np.mean(np.array(excess) <= TOL)
    yield f"{what} cuML, objective excess, largest (theirs - ours) / ours", max(excess)
    yield f"{what} ratio at an equal gap (goal 10)", theirs * scale / ours


def main():
    """Measure the parts."""
    parser = command_line(__doc__, PARTS)
    parser.add_argument("--minutes", type=float, default=2.5, help="of solving, for imagenet")
    parser.add_argument("--layer-minutes", type=float, default=1.5, help="of solving by ours, for layers")
    parser.add_argument("--features", type=Path, help="a feature file whose layers are taken")
    given = read(parser, PARTS)
    sizes = TOY if given.toy else Sizes()
    work = {
        "layers": partial(layers, sizes, given.device, given.features, given.layer_minutes),
        "imagenet": partial(imagenet, sizes, given.device, given.minutes),
        "cuml": partial(cuml, sizes, given.device, given.features),
    }
    return run("gpu/path_speed", work, given)


if __name__ == "__main__":
    sys.exit(main())
