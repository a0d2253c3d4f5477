"""An iGPT on CIFAR-10 at 32 x 32, its depth curve and controls: `python benchmarks/gpu/train_cifar10.py --device cuda`.

What is chosen and tested is written down in docs/results/cifar10-gpu/plan.md, committed before the run. Stages, each of
which skips what is finished, so that the same command goes on after a kill:
- train: 12 layers x 512, 1,024 tokens of 512 colours, bfloat16 autocast over float32 weights, flips and shifts, for
  `--minutes`; the number of updates comes from a measured rate (timed_training.py). `--stop-after` seconds it saves
  and pauses, with exit code 3.
- extract: every layer of the trained network, of the same one with random weights, and the pixels: all 60,000 pictures.
- sweep: protocol igpt (45 penalties), every layer. The test split is read here and in concat, once a probe.
- concat: windows of 5 (and 3) layers around the best one, of the trained and of the random network.
- report: page, figures, tables, samples, the planned tests; what is small enough for docs/results goes to OUT/keep.

Data: a folder that cifar10_tokens.py packed (`--data`). `--toy` runs all in seconds on one core: tiny network, few
pictures of `--archives` at 8 x 8, or of two photographs where there are none. Rows go to
benchmarks/results/gpu/train_cifar10.csv.
"""

import argparse
import glob
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar10_tokens import SOURCE, load, pack
from pictures import photographs
from planned_tests import measures, planned_tests
from rows import record
from timed_training import train_within

from analyses import training_log
from igpt_model import TrainConfig, atomic
from igpt_model.sample import sample
from igpt_model.training.checkpoint import latest_checkpoint, load_checkpoint
from probekit import Results, concat, extract, load_dataset, load_encoder, sweep
from probekit.datasets import Dataset
from probekit.reports import write_report

STAGES = ("train", "extract", "sweep", "concat", "report")
TOY = {"layers": 4, "width": 32, "heads": 2, "batch": 16, "minutes": 0.05}
TOY_SIDE, TOY_COLOURS, TOY_ROWS = 8, 16, {"train": 300, "val": 60, "test": 120}
OVER_C = ("Cs", "l2s", "val_accuracy", "val_log_loss", "n_iter", "converged", "grad_rel", "gap")
PAUSED = 3


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


def do_train(given, data, palette, out):
    """Train; False when it paused."""
    side = data.splits["train"].images(0, 1)[0].shape[0]
    config = TrainConfig(
        n_layer=given.layers,
        n_embd=given.width,
        n_head=given.heads,
        resolution=side,
        n_colours=len(palette),
        augment=("flip", "pad_crop:4" if side >= 32 else "pad_crop:1"),
        batch_size=given.batch,
        lr=given.lr,
        seed=given.seed,
        eval_images=2_048,
        dtype=given.dtype,
        device=given.device,
        compile=given.compile,
    )
    pictures = pictures_of(data.splits["train"]), pictures_of(data.splits["val"]), palette
    updates = 8 if given.toy else 64
    return train_within(config, pictures, out, given.minutes, updates, given.until)["done"]


def series_of(given, out, side):
    """name -> encoder of the trained network and the two controls."""
    where = {"device": given.device, "dtype": given.dtype}
    trained = load_encoder(f"igpt:{out / 'run'}", **where)
    random = load_encoder(f"random:{out / 'run'}", weights_seed=given.seed + 1, **where)
    return {"igpt": trained, "random": random, "pixels": load_encoder(f"pixels:{side}", device=given.device)}


def do_extract(given, data, palette, out):
    """Every layer's features of every picture."""
    (out / "features").mkdir(exist_ok=True)
    side = data.splits["train"].images(0, 1)[0].shape[0]
    for name, encoder in series_of(given, out, side).items():
        extract(encoder, data, out / "features" / f"{name}.h5", batch_size=256)


def do_sweep(given, data, palette, out):
    """Probe every layer."""
    Cs = np.logspace(-5, 3, 5) if given.toy else None
    for name in ("igpt", "random", "pixels"):
        sweep(out / "features" / f"{name}.h5", out, Cs=Cs, series=name, device=given.device)


def do_concat(given, data, palette, out):
    """Probe joined layers."""
    Cs = np.logspace(-5, 3, 5) if given.toy else None
    for name, windows in (("igpt", (given.window, 3)), ("random", (given.window,))):
        store = out / "features" / f"{name}.h5"
        concat(store, out, Cs=Cs, window=windows, greedy_width=given.greedy, series=name, device=given.device)


def draw_samples(given, out, place, n=36):
    """Pictures the network draws, six in a row, enlarged."""
    checkpoint = load_checkpoint(latest_checkpoint(out / "run"), device=given.device)
    drawn = checkpoint.palette.decode(sample(checkpoint.model, n, seed=given.seed).cpu().numpy())
    side, columns = drawn.shape[1], 6
    sheet = drawn.reshape(-1, columns, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, columns * side, 3)
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(place)


def do_report(given, data, palette, out):
    """Page, tables, figures, samples, planned tests."""
    keep = out / "keep"
    keep.mkdir(exist_ok=True)
    results = Results(out)
    tests = planned_tests(results, given.window)
    atomic.write_json(keep / "tests.json", tests)
    write_report(out, out / "report")
    for name in ("depth_curve.svg", "depth_curve.png", "depth_curve.csv", "table.csv", "table.md", "index.html"):
        shutil.copy(out / "report" / name, keep / name)
    training_log.main([str(out / "run"), "--out", str(keep)])
    for name in ("plan.json", "stages.jsonl", "run/config.json"):
        shutil.copy(out / name, keep / name.replace("/", "-"))
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    slim = [json.dumps({key: value for key, value in line.items() if key not in OVER_C}) for line in lines]
    atomic.write_text(keep / "records.jsonl", "\n".join(slim) + "\n")
    draw_samples(given, out, keep / "samples.png", n=6 if given.toy else 36)
    record(
        "gpu/train_cifar10_toy" if given.toy else "gpu/train_cifar10",
        [*run_measures(out), *measures(tests)],
        given.device,
    )
    print("\n".join([*tests["primary"]["sentences"], *tests["primary"]["warnings"]]))
    for name, test in tests["secondary"].items():
        print(f"{name}: {test['points']:+.1f} [{test['low']:+.1f}, {test['high']:+.1f}], Holm's p {test['p_holm']:.2g}")


def run_measures(out):
    """How the training went, and the seconds of each stage."""
    plan = json.loads((out / "plan.json").read_text())
    config = plan["config"]
    log = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    yield "training: updates", plan["steps"]
    yield "training: images/s", config["batch_size"] / plan["measured"]["s_per_update"]
    yield "training: validation loss, nats a pixel", [line["val_loss"] for line in log if line["kind"] == "eval"][-1]
    yield "training: lowest validation loss", min(line["val_loss"] for line in log if line["kind"] == "eval")
    yield "training: compiled (1: yes)", float(config["compile"])
    yield "training: runs that diverged before", len(plan["diverged"])
    spent = {}
    for line in map(json.loads, (out / "stages.jsonl").read_text().splitlines()):
        spent[line["stage"]] = spent.get(line["stage"], 0.0) + line["seconds"]
    for stage, seconds in spent.items():
        yield f"stage {stage}: s", seconds


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"of {', '.join(STAGES)}; all when none is named")
    parser.add_argument("--data", type=Path, default=Path(".gpu/cifar10-512"), help="folder of cifar10_tokens.py")
    parser.add_argument("--archives", default=SOURCE, help="for --toy: image archives")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-gpu"))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, over all calls")
    parser.add_argument("--stop-after", type=float, help="seconds after which training saves and pauses")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.0015)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on cuda, float32 on a CPU")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument(
        "--greedy", type=int, default=0, help="columns of a greedy choice of layers, beside the windows"
    )
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
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    data, palette = load(toy_data(given.archives, out / "data") if given.toy else given.data)
    work = {"train": do_train, "extract": do_extract, "sweep": do_sweep, "concat": do_concat, "report": do_report}
    for stage in (stage for stage in STAGES if stage in given.stages):
        print(f"--- {stage}", flush=True)
        begun = time.perf_counter()
        paused = work[stage](given, data, palette, out) is False
        with open(out / "stages.jsonl", "a") as file:
            file.write(json.dumps({"stage": stage, "seconds": round(time.perf_counter() - begun, 2)}) + "\n")
        if paused:
            print("training is paused: the same command goes on", flush=True)
            return PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
