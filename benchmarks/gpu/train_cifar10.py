"""Rise and fall on CIFAR-10 at 32 x 32, width by width and seed by seed: `python benchmarks/gpu/train_cifar10.py`.

The recipe is that of docs/results/rise-and-fall: a palette at least as wide as the network (512 colours; widths 64 to
512) and a long training; three seeds of the smallest come first. What is tested is written down in
docs/results/cifar10-gpu/plan.md, committed before the run. Stages, each of which skips what is finished, so that the
same command goes on after a kill:
- train: of every run WIDTH:SEED (`--runs`), 12 layers, one head for each 64 columns, 1,024 tokens, bfloat16 autocast
  over float32 weights, flips and shifts, for `--minutes` each; the number of updates comes from a measured rate
  (timed_training.py). `--stop-after` seconds it saves and pauses, with exit code 3.
- extract: every layer of the trained networks, of one with random weights a width, and the pixels: all 60,000 pictures.
- sweep: protocol igpt (45 penalties), every layer. The test split is read here, once a probe.
- report: page, figures, tables, samples, the planned tests.
What is small enough for docs/results is put into OUT/keep after each run and stage: a lent machine keeps nothing.

Data: a folder that cifar10_tokens.py packed (`--data`). `--toy` runs all in seconds on one core: tiny networks, few
pictures of `--archives` at 8 x 8, or of two photographs where there are none. Rows go to
benchmarks/results/gpu/train_cifar10.csv.
"""

import argparse
import glob
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cifar10_tokens import SOURCE, load, pack
from gpu.pictures import photographs
from gpu.planned_tests import measures, planned_tests
from gpu.timed_training import train_within
from rows import record

from analyses import training_log
from igpt_model import TrainConfig, atomic
from igpt_model.sample import sample
from igpt_model.training.checkpoint import latest_checkpoint, load_checkpoint
from probekit import Results, extract, load_dataset, load_encoder, sweep
from probekit.datasets import Dataset
from probekit.reports import write_report

STAGES = ("train", "extract", "sweep", "report")
RUNS = ("64:0", "64:1", "64:2")
TOY = {"layers": 4, "batch": 16, "minutes": 0.03, "runs": ["32:0", "32:1"]}
TOY_SIDE, TOY_COLOURS, TOY_ROWS = 8, 16, {"train": 300, "val": 60, "test": 120}
OVER_C = ("Cs", "l2s", "val_accuracy", "val_log_loss", "n_iter", "converged", "grad_rel", "gap")
HEAD_WIDTH = 64
MOST_WEIGHTS = 4_000_000  # of a network whose weights are kept: 8 MB in bfloat16
PAUSED = 3


@dataclass(frozen=True)
class Run:
    """One network: its width, its seed, and the folder of everything."""

    width: int
    seed: int
    out: Path

    @property
    def name(self):
        return f"width {self.width}, seed {self.seed}"

    @property
    def random(self):
        return f"width {self.width}, random"

    @property
    def folder(self):
        return self.out / self.name.replace(", ", "-").replace(" ", "-")


def toy_data(archives, folder):
    """A packed folder of a few pictures."""
    if not (folder / "about.json").exists():
        if glob.glob(archives):
            whole = load_dataset(archives)
        else:
            train, test = photographs(500, TOY_SIDE), photographs(200, TOY_SIDE, seed=1)
            whole = load_dataset({"train": train, "test": test}, name="photographs")
        few = {name: whole.splits[name].limit(rows) for name, rows in TOY_ROWS.items()}
        pack(Dataset(whole.name, whole.classes, whole.provenance, few), folder, TOY_SIDE, TOY_COLOURS)
    return folder


def pictures_of(split):
    """All pictures of a split, uint8 (N, P, P, 3)."""
    return np.stack(split.images(0, len(split)))


def config_of(given, run, side, colours):
    """The settings of a run; its number of updates comes later."""
    return TrainConfig(
        n_layer=given.layers,
        n_embd=run.width,
        n_head=max(1, run.width // HEAD_WIDTH),
        resolution=side,
        n_colours=colours,
        augment=("flip", "pad_crop:4" if side >= 32 else "pad_crop:1"),
        batch_size=given.batch,
        lr=0.0015 * (512 / run.width) ** 0.5,
        seed=run.seed,
        eval_images=2_048,
        dtype=given.dtype,
        device=given.device,
        compile=given.compile,
    )


def do_train(given, runs, data, palette):
    """Train one run after the other; False when it paused."""
    pictures = pictures_of(data.splits["train"]), pictures_of(data.splits["val"]), palette
    for run in runs:
        config = config_of(given, run, pictures[0].shape[1], len(palette))
        twins = (json.loads(path.read_text()) for path in given.out.glob(f"width-{run.width}-seed-*/plan.json"))
        twin = next((plan for plan in twins if not plan["diverged"]), None)
        if twin and not (run.folder / "plan.json").exists():  # as many updates, and no second measuring
            run.folder.mkdir()
            atomic.write_json(run.folder / "plan.json", twin | {"config": twin["config"] | {"seed": run.seed}})
        print(run.name, flush=True)
        if not train_within(config, pictures, run.folder, given.minutes, 8 if given.toy else 64, given.until)["done"]:
            return False
        keep_run(run)
    return True


def keep_run(run):
    """Put what a trained run leaves into OUT/keep: plan, losses, settings, weights where they are few."""
    keep = run.out / "keep" / run.folder.name
    keep.mkdir(parents=True, exist_ok=True)
    training_log.main([str(run.folder / "run"), "--out", str(keep)])
    for name in ("plan.json", "run/config.json"):
        shutil.copy(run.folder / name, keep / Path(name).name)
    weights = load_checkpoint(run.folder / "run").model.state_dict()
    if sum(value.numel() for value in weights.values()) <= MOST_WEIGHTS:
        save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, keep / "weights.safetensors")


def series_of(given, runs, side):
    """Name and encoder of the trained networks and the controls, the encoder loaded when it is its turn."""
    where = {"device": given.device, "dtype": given.dtype}
    yield "pixels", load_encoder(f"pixels:{side}", device=given.device)
    for run in runs:
        yield run.name, load_encoder(f"igpt:{run.folder / 'run'}", **where)
    for run in {run.width: run for run in reversed(runs)}.values():
        yield run.random, load_encoder(f"random:{run.folder / 'run'}", weights_seed=run.seed + 1000, **where)


def file_of(out, name):
    return out / "features" / f"{name}.h5"


def do_extract(given, runs, data, palette):
    """Every layer's features of every picture."""
    (given.out / "features").mkdir(exist_ok=True)
    side = data.splits["train"].images(0, 1)[0].shape[0]
    for name, encoder in series_of(given, runs, side):
        extract(encoder, data, file_of(given.out, name), batch_size=256)


def do_sweep(given, runs, data, palette):
    """Probe every layer; the records are kept without what each penalty gave."""
    Cs = np.logspace(-5, 3, 5).tolist() if given.toy else None
    for name in dict.fromkeys(["pixels", *(run.name for run in runs), *(run.random for run in runs)]):
        sweep(file_of(given.out, name), given.out, Cs=Cs, series=name, device=given.device)
        lines = [json.loads(line) for line in (given.out / "results.jsonl").read_text().splitlines()]
        slim = [json.dumps({key: value for key, value in line.items() if key not in OVER_C}) for line in lines]
        atomic.write_text(given.out / "keep" / "records.jsonl", "\n".join(slim) + "\n")


def draw_samples(given, run, place, n=36):
    """Pictures the network draws, six in a row, enlarged."""
    checkpoint = load_checkpoint(latest_checkpoint(run.folder / "run"), device=given.device)
    drawn = checkpoint.palette.decode(sample(checkpoint.model, n, seed=run.seed).cpu().numpy())
    side, columns = drawn.shape[1], 6
    sheet = drawn.reshape(-1, columns, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, columns * side, 3)
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(place)


def do_report(given, runs, data, palette):
    """Page, tables, figures, samples, planned tests."""
    keep = given.out / "keep"
    tests = planned_tests(Results(given.out), [(run.name, run.random) for run in runs])
    atomic.write_json(keep / "tests.json", tests)
    write_report(given.out, given.out / "report")
    for name in ("depth_curve.svg", "depth_curve.png", "depth_curve.csv", "table.csv", "table.md", "index.html"):
        shutil.copy(given.out / "report" / name, keep / name)
    shutil.copy(given.out / "stages.jsonl", keep)
    found = [*stage_measures(given.out), *(row for run in runs for row in run_measures(run)), *measures(tests)]
    record("gpu/train_cifar10_toy" if given.toy else "gpu/train_cifar10", found, given.device)
    for name, test in tests["runs"].items():
        print(f"{name}: {'counts' if test['counts'] else 'does not count'}. {' '.join(test['sentences'])}")
    draw_samples(given, runs[0], keep / "samples.png", n=6 if given.toy else 36)


def run_measures(run):
    """How the training of a run went."""
    plan = json.loads((run.folder / "plan.json").read_text())
    config = TrainConfig(**plan["config"])
    log = [json.loads(line) for line in (run.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses, tokens = [line["val_loss"] for line in log if line["kind"] == "eval"], config.resolution**2
    seen = plan["steps"] * config.batch_size
    yield f"{run.name}: updates", plan["steps"]
    yield f"{run.name}: tokens a parameter", seen * tokens / config.model_config.n_params
    yield f"{run.name}: images/s", config.batch_size / plan["measured"]["s_per_update"]
    yield f"{run.name}: validation loss, nats a pixel", losses[-1]
    yield f"{run.name}: lowest validation loss", min(losses)
    yield f"{run.name}: compiled (1: yes)", float(config.compile)
    yield f"{run.name}: runs that diverged before", len(plan["diverged"])


def stage_measures(out):
    """The seconds of each stage."""
    spent: dict[str, float] = {}
    for line in map(json.loads, (out / "stages.jsonl").read_text().splitlines()):
        spent[line["stage"]] = spent.get(line["stage"], 0.0) + line["seconds"]
    return [(f"stage {stage}: s", seconds) for stage, seconds in spent.items()]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"of {', '.join(STAGES)}; all when none is named")
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="WIDTH:SEED", help="in this order")
    parser.add_argument("--data", type=Path, default=Path(".gpu/cifar10-512"), help="folder of cifar10_tokens.py")
    parser.add_argument("--archives", default=SOURCE, help="for --toy: image archives")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-gpu"))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=2.5, help="of training a run, over all calls")
    parser.add_argument("--stop-after", type=float, help="seconds after which training saves and pauses")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on cuda, float32 on a CPU")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--toy", action="store_true", help="everything tiny, in seconds")
    given = parser.parse_args()
    if strange := set(given.stages) - set(STAGES):
        parser.error(f"unknown stages {', '.join(sorted(strange))}; choose among {', '.join(STAGES)}")
    if given.toy:
        vars(given).update(TOY)
    given.dtype = given.dtype or ("bfloat16" if given.device == "cuda" else "float32")
    given.compile = given.device == "cuda" and not given.no_compile
    given.until = None if given.stop_after is None else time.monotonic() + given.stop_after
    return given


def main():
    """Run the stages that were asked for, in their order."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    data, palette = load(toy_data(given.archives, given.out / "data") if given.toy else given.data)
    runs = [Run(int(width), int(seed), given.out) for width, seed in (text.split(":") for text in given.runs)]
    work = {"train": do_train, "extract": do_extract, "sweep": do_sweep, "report": do_report}
    for stage in (stage for stage in STAGES if stage in given.stages):
        print(f"--- {stage}", flush=True)
        begun = time.perf_counter()
        paused = work[stage](given, runs, data, palette) is False
        with open(given.out / "stages.jsonl", "a") as file:
            file.write(json.dumps({"stage": stage, "seconds": round(time.perf_counter() - begun, 2)}) + "\n")
        if paused:
            print("training is paused: the same command goes on", flush=True)
            return PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
