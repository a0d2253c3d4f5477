"""The whole road on a device against references: `python benchmarks/gpu/check.py [PART ...] --device cuda [--toy]`.

Training (which the others need), features, penalty paths and a sweep run on the device; each is held against a
reference on the CPU in float64 by other code, and the script exits 1 when one is farther off than it may be. With
`--device cpu` the same references judge the CPU's float32, so that the script itself is tried without a GPU;
`--spoil PART` adds noise of TF32's size (1e-3) to one part of what the device answered, which must make it fail. Rows
go to benchmarks/results/gpu/check.csv.

What is allowed, and why (u = 6e-8 is float32's rounding, 4e-3 bfloat16's, 5e-4 TF32's):
- float32 features, relative to float64: 1e-5. A few dozen dependent sums of random signs leave 1e-7 to 1e-6; TF32 in
  the matrix products leaves 3e-4, so switching it on unasked is seen.
- bfloat16 features: 2e-2, and more than 1e-4 above layer 00, or bfloat16 was not used (layer 00, embeddings and their
  mean, stays in float32 and has its bound).
- training losses, the largest relative difference over all updates: float32 1e-4, bfloat16 2e-2. Adam divides by the
  root of the squared gradient, which magnifies rounding where gradients are small: hence ten times the features'.
- path coefficients, solved in float64 to a relative gap of 1e-9, against scikit-learn's: 1e-3 relative, and never
  farther than strong convexity allows, sqrt(2 gap f / l2) for each of the two. In float32, as a sweep does it, every
  fit must be certified and its objective at most 1e-4 above the reference.
- the sweep on the device and on the CPU from one feature file: at most 2 % of the test rows answered otherwise.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.pictures import photographs
from path_speed import objective
from rows import record

from igpt_model import TrainConfig, train
from igpt_model.model import NORM_EPS
from igpt_model.process_group import Ranks
from igpt_model.training.batches import encode_all, token_batch
from igpt_model.training.checkpoint import latest_checkpoint, load_checkpoint
from igpt_model.training.engine import Engine, learning_rate
from probekit import extract, fit_path, load_dataset, load_encoder, sweep
from probekit.results.predictions import row_predictions

PARTS = ("losses", "features", "path", "sweep")
NOISE = 1e-3


@dataclass(frozen=True)
class Row:
    """One comparison: fine where `least` <= value <= `most`."""

    what: str
    value: float
    most: float
    least: float = 0.0

    @property
    def ok(self):
        return self.least <= self.value <= self.most


def noisy(values, wanted):
    """The values, or with noise of TF32's size where they are to be spoilt."""
    values = np.asarray(values, np.float64)
    return values * (1 + NOISE * np.random.default_rng(0).standard_normal(values.shape)) if wanted else values


def reference_losses(config, images, palette):
    """Losses (steps,) of the same updates in float64 on the CPU, without what `train` puts around them."""
    engine = Engine(config, Ranks())
    engine.model.double()
    tokens = encode_all(images, palette)
    losses = []
    for step in range(config.steps):
        batch, _ = token_batch(tokens, config.transform, config.batch_size, config.seed, step)
        rate = learning_rate(step, config.lr, config.warmup_steps, config.steps, config.schedule)
        losses.append(float(engine.update(batch, None, rate)[0]))
    return np.array(losses)


def losses(size, device, images, val_images, folder, spoil):
    """Train in float32 and bfloat16 on the device; yield how far the losses are from float64's."""
    n_layer, n_embd, side, colours, steps = size
    about = {"n_layer": n_layer, "n_embd": n_embd, "n_head": 4, "resolution": side, "n_colours": colours}
    about |= {"augment": ("flip", "pad_crop:2"), "batch_size": 16, "lr": 1e-3, "warmup_steps": 5, "steps": steps}
    about |= {"log_every": 1, "eval_every": steps, "checkpoint_every": steps, "eval_images": 64}
    told = {
        dtype: list(train(TrainConfig(**about, dtype=dtype, device=device), images, val_images, folder / dtype))
        for dtype in ("float32", "bfloat16")
    }
    palette = load_checkpoint(latest_checkpoint(folder / "float32")).palette
    reference = reference_losses(TrainConfig(**about), images, palette)
    for dtype, most, least in (("float32", 1e-4, 0.0), ("bfloat16", 2e-2, 1e-7)):
        found = noisy([line["loss"] for line in told[dtype] if line["kind"] == "step"], spoil == "losses")
        far = np.abs(found - reference) / reference
        yield Row(f"training, {dtype}: loss of {steps} updates, largest relative difference", far.max(), most, least)
    yield Row("training: float64's loss, last update to the first", reference[-1] / reference[0], 0.97)


@torch.no_grad()
def reference_features(run, images):
    """The features (L + 1, n, D) of a checkpoint by their definition, float64 on the CPU."""
    checkpoint = load_checkpoint(latest_checkpoint(run))
    model = checkpoint.model.double()
    tokens = torch.from_numpy(checkpoint.palette.encode(images).astype(np.int64))
    gains = [block.ln_1.g for block in model.blocks] + [model.ln_f.g]
    states = model.hidden_states(tokens)
    scaled = ((h, h.square().mean(-1, keepdim=True), g) for h, g in zip(states, gains, strict=True))
    return np.stack([(h / (square + NORM_EPS).sqrt() * g).mean(1).numpy() for h, square, g in scaled])


def features(run, device, images, spoil):
    """Yield each layer's distance from float64's features, in float32 and in bfloat16."""
    reference = reference_features(run, images)
    for dtype, most, least in (("float32", 1e-5, 0.0), ("bfloat16", 2e-2, 1e-4)):
        encoder = load_encoder(f"igpt:{run}", device=device, dtype=dtype)
        for name, X, exact in zip(encoder.layers, encoder(images, np.arange(len(images))), reference, strict=True):
            X = noisy(X.cpu().numpy(), spoil == "features")
            bounds = (1e-5, 0.0) if name == "00" else (most, least)  # embeddings stay in float32 in both
            yield Row(f"features, {dtype}, layer {name}: relative distance", distance(X, exact), *bounds)


def distance(X, exact):
    """|X - exact| / |exact|."""
    return np.linalg.norm(X - exact) / np.linalg.norm(exact)


def path(X, y, device, spoil):
    """Yield how far the coefficients and objectives of a path are from scikit-learn's, float64."""
    Cs = np.logspace(-4, 0, 5)
    X = X / X.std()
    wide = X.astype(np.float64)
    oracle = fit_path(wide, y, Cs, backend="sklearn", tol=1e-9, max_iter=20_000)
    ours = fit_path(wide, y, Cs, device=device, tol=1e-9, dtype="float64")
    coef = noisy(ours.coef, spoil == "path")
    apart = np.linalg.norm(coef - oracle.coef, axis=(1, 2))
    norms = np.linalg.norm(oracle.coef, axis=(1, 2))
    values = [objective(X, y, w, b, l2) for w, b, l2 in zip(oracle.coef, oracle.intercept, oracle.l2s, strict=True)]
    # each of the two is within sqrt(2 gap f / l2) of the optimum; the gap is at least what float64 resolves
    gaps = [np.maximum(found.certificates["gap"], 1e-13) for found in (ours, oracle)]
    allowed = sum(np.sqrt(2 * gap * np.array(values) / oracle.l2s) for gap in gaps)
    yield Row("path, float64: coefficients, largest relative distance", (apart / norms).max(), 1e-3)
    yield Row("path, float64: coefficients, distance to what the gaps allow", (apart / allowed).max(), 1.0)
    quick = fit_path(X.astype(np.float32), y, Cs, device=device, dtype="float32")
    found = [objective(X, y, w, b, l2) for w, b, l2 in zip(quick.coef, quick.intercept, quick.l2s, strict=True)]
    yield Row("path, float32: share of fits certified", quick.converged.mean(), 1.0, 1.0)
    yield Row("path, float32: objective above the reference, largest share", (np.divide(found, values) - 1).max(), 1e-4)


def swept(store, device, folder, spoil):
    """Yield for each layer the share of test rows that a sweep on the device answers otherwise than one on the CPU."""
    Cs = np.logspace(-5, 3, 9).tolist()
    both = {where: sweep(store, folder / where, Cs=Cs, device=where, dtype="float32") for where in {device, "cpu"}}
    # on a CPU the device's own sweep would be the reference: float64 stands in for it
    exact = sweep(store, folder / "float64", Cs=Cs, dtype="float64") if device == "cpu" else both["cpu"]
    pairs = (sorted(found.of(kind="layer"), key=lambda r: r.depth or 0) for found in (both[device], exact))
    for mine, theirs in zip(*pairs, strict=True):
        answers = row_predictions(mine).predictions.copy()
        if spoil == "sweep":
            answers[::20] = (answers[::20] + 1) % 4
        share = float((answers != row_predictions(theirs).predictions).mean())
        yield Row(f"sweep, layer {mine.layers[0]}: test rows answered otherwise", share, 0.02)


def road(parts, size, device, spoil, n_train, n_test, folder):
    """Yield every comparison of the parts."""
    side = size[2]
    (train_images, train_y), (test_images, test_y) = photographs(n_train, side), photographs(n_test, side, seed=1)
    yield from losses(size, device, train_images, test_images, folder, spoil)
    run = folder / "float32"
    if "features" in parts:
        yield from features(run, device, test_images[:64], spoil)
    if not {"path", "sweep"} & set(parts):
        return
    data = load_dataset({"train": (train_images, train_y), "test": (test_images, test_y)}, name="photographs")
    encoder = load_encoder(f"igpt:{run}", device=device)
    with extract(encoder, data, folder / "features.h5") as store:
        if "path" in parts:
            yield from path(*store.read("train", store.layers[-1]), device, spoil)
        if "sweep" in parts:
            yield from swept(store, device, folder, spoil)


def main():
    """Compare, print the table, append the rows; 1 when something is out of its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--toy", action="store_true", help="seconds on one CPU core")
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--spoil", choices=PARTS, help="add noise of TF32's size to this part: it must then fail")
    given = parser.parse_args()
    if strange := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"unknown parts {', '.join(strange)}; choose among {', '.join(PARTS)}")
    # blocks, width, pixels a side, colours, updates
    size, n_train, n_test = ((3, 32, 8, 16, 12), 300, 200) if given.toy else ((4, 128, 16, 256, 20), 1000, 500)
    found = []

    def measures():
        with tempfile.TemporaryDirectory() as folder:
            for row in road(given.parts, size, given.device, given.spoil, n_train, n_test, Path(folder)):
                found.append(row)
                yield row.what, row.value

    record("gpu/check", measures(), given.device)
    print(f"\n{'':4} {'value':>9} {'at least':>9} {'at most':>9}  what")
    for row in found:
        print(f"{'ok' if row.ok else 'FAR':4} {row.value:9.2g} {row.least:9.2g} {row.most:9.2g}  {row.what}")
    missed = sum(not row.ok for row in found)
    print(f"{len(found) - missed} of {len(found)} within their bounds on {given.device}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
