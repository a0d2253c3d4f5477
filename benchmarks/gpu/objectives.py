"""Autoregressive against BERT, and two smaller sizes, on the same pictures: `python benchmarks/gpu/objectives.py`.

Four networks see the same pictures in the same order, equally many times: `ar` (8 layers x 256), `bert` (the same,
masked), `half` and `quarter` (autoregressive, 128 and 64 wide). How many updates `--minutes` allow for all four is
measured once, on short runs, and kept in OUT/plan.json; a killed script goes on where it was. Each part trains one
network, extracts its layers and probes them (protocol igpt); `compare` says what analyses/ar_vs_bert.py and
analyses/scale.py make of the records: paired tests of the best layers, chosen on held-out rows.

Data: a folder that cifar10_tokens.py packed (`--data`); `--toy` takes few pictures. One seed each and minutes of
training: this shows a direction, not the paper's numbers. Rows go to benchmarks/results/gpu/objectives.csv.
"""

import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cifar10_tokens import SOURCE, load
from gpu.parts import command_line, read, run
from gpu.timed_training import measure, spread
from train_cifar10 import pictures_of, toy_data

from analyses import ar_vs_bert, scale
from igpt_model import TrainConfig, atomic, train
from igpt_model.errors import UserError
from probekit import Results, extract, load_encoder, sweep
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import series_margin

NETWORKS = {  # share of the full width, objective
    "ar": (1, "autoregressive"),
    "bert": (1, "bert"),
    "half": (2, "autoregressive"),
    "quarter": (4, "autoregressive"),
}
PARTS = (*NETWORKS, "compare")


def config_of(name, given, side, colours):
    """The settings of a network; its number of updates comes later."""
    part, objective = NETWORKS[name]
    width, heads, layers, batch = (32, 4, 3, 16) if given.toy else (256, 8, 8, 128)
    return TrainConfig(
        n_layer=layers,
        n_embd=width // part,
        n_head=max(heads // part, 1),
        resolution=side,
        n_colours=colours,
        objective=objective,
        augment=("flip", "pad_crop:4" if side >= 32 else "pad_crop:1"),
        batch_size=batch,
        lr=0.003,
        seed=given.seed,
        eval_images=1_024,
        dtype="bfloat16" if given.device == "cuda" else "float32",
        device=given.device,
        compile=given.device == "cuda",
    )


class Work:
    """Data, settings and the plan of all four networks."""

    def __init__(self, given):
        self.given, self.out = given, given.out
        self.out.mkdir(parents=True, exist_ok=True)
        folder = toy_data(given.archives, self.out / "data") if given.toy else given.data
        if not (folder / "about.json").exists():
            raise UserError(f"{folder} holds no packed pictures; make it with benchmarks/gpu/cifar10_tokens.py.")
        self.data, palette = load(folder)
        train_split, val_split = self.data.splits["train"], self.data.splits["val"]
        self.pictures = pictures_of(train_split), pictures_of(val_split), palette
        side = self.pictures[0].shape[1]
        self.configs = {name: config_of(name, given, side, len(palette)) for name in NETWORKS}
        self.steps = self._steps()

    def _steps(self):
        """Updates of each network, so that all four together take the minutes."""
        place = self.out / "plan.json"
        if not place.exists():
            seconds = {}
            for name, config in self.configs.items():
                with tempfile.TemporaryDirectory(dir=self.out) as folder:
                    seconds[name] = measure(config, self.pictures, Path(folder) / "run", 8 if self.given.toy else 24)
            whole = sum(found["s_per_update"] for found in seconds.values())
            steps = max(10, int(60 * self.given.minutes / whole))
            atomic.write_json(place, {"minutes": self.given.minutes, "steps": steps, "measured": seconds})
        return int(json.loads(place.read_text())["steps"])


def network(name, work):
    """Rows of one network: trained, extracted, probed."""
    config = spread(work.configs[name], work.steps)
    # a twentieth of so few updates each: evaluations and checkpoints would cost more than the updates
    config = replace(config, eval_every=max(1, work.steps // 4), checkpoint_every=work.steps)
    losses = [told["val_loss"] for told in train(config, *work.pictures[:2], work.out / name, palette=work.pictures[2])
              if told["kind"] == "eval"]  # fmt: skip
    yield "parameters", config.model_config.n_params
    yield "updates", work.steps
    if losses:
        # BERT's counts masked pixels only, given the others: not to be compared with the other networks'
        yield "validation loss, nats a pixel", losses[-1]
    encoder = load_encoder(f"igpt:{work.out / name}", device=config.device, dtype=config.dtype)
    extract(encoder, work.data, work.out / f"{name}.h5", batch_size=256)
    Cs = np.logspace(-5, 3, 5).tolist() if work.given.toy else None
    results = sweep(work.out / f"{name}.h5", out=work.out / "results", Cs=Cs, series=name, device=config.device)
    for found in results.of(series=name, kind="layer"):
        yield f"layer {found.layers[0]}: test accuracy", found.accuracy


def compare(work):
    """Rows of the best layers, and of every pair that the question is about."""
    folder = work.out / "results"
    there = set(Results(folder).series)
    if missing := [name for name in NETWORKS if name not in there]:
        raise UserError(f"There are no probes of {', '.join(missing)} yet; run those parts first.")
    (panel,) = build_panels(collect_records([folder]))
    by_name = {series.records[0].series: series for series in panel.series}
    for name, series in by_name.items():
        yield f"{name}: best layer of {series.depths[-1]}, chosen on held-out rows", series.depths[series.peak]
        yield f"{name}: its test accuracy, %", series.values[series.peak]
    for one, other in (("ar", "bert"), ("ar", "half"), ("half", "quarter")):
        paired = series_margin(by_name[one], by_name[other])
        if paired:
            gain, low, high = paired.points
            yield f"{one} above {other}, points", gain
            yield f"{one} above {other}, points, low end of 95 %", low
            yield f"{one} above {other}, points, high end of 95 %", high
            yield f"{one} against {other}, p", paired.p
    print("\n".join(ar_vs_bert.lines(panel)))
    print("\n".join(scale.lines(panel)), flush=True)


def main():
    """Train, extract and probe what was asked for."""
    parser = command_line(__doc__, PARTS)
    parser.add_argument("--data", type=Path, default=Path(".gpu/cifar10-512"), help="folder of cifar10_tokens.py")
    parser.add_argument("--archives", default=SOURCE, help="for --toy: image archives")
    parser.add_argument("--out", type=Path, default=Path("/tmp/probekit-gpu/objectives"))
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, of all four together")
    parser.add_argument("--seed", type=int, default=0)
    given = read(parser, PARTS)
    if given.toy:
        given.minutes = min(given.minutes, 0.05)
    try:
        work = Work(given)
    except UserError as error:
        parser.error(str(error))
    parts = {name: partial(network, name, work) for name in NETWORKS}
    return run("gpu/objectives", {**parts, "compare": partial(compare, work)}, given)


if __name__ == "__main__":
    sys.exit(main())
