"""Kills and collisions of whole commands: each must end, when run again, in what an undisturbed run gives.

    python tests/faults/kills.py [--kills 20] [--only train,sweep]

Verbs are run in folders of their own and killed (SIGKILL, SIGTERM or SIGINT, at a random moment of an undisturbed
run's length) until they get through; then results are compared with the undisturbed ones, figures and times apart.
Besides: two processes at once on one folder, file-size limits, and a rank of two that dies under torchrun.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
TRAIN = (
    "train wandering-digits --resolution 12 --n-colours 4 --n-layer 2 --n-embd 12 --n-head 2 --batch-size 8 "
    "--steps 40 --warmup-steps 2 --checkpoint-every 5 --limit 40 --threads 1 --out {out}/run"
)
VERBS = {
    "train": TRAIN,
    "finetune": "finetune {made}/run wandering-digits --limit 40 --steps 30 --eval-every 5 --batch-size 8 --threads 1 "
    "--out {out}/run",
    "extract": "extract igpt:{made}/run wandering-digits --limit 300 --batch-size 8 --out {out}/f.h5",
    "sweep": "sweep {made}/f.h5 --out {out}",
    "sweep by two workers": "sweep {made}/f.h5 --workers 2 --out {out}",
    "concat": "concat {made}/f.h5 --window 2 --out {out}",
    "study": "study pixels --on digits --limit 60 --Cs 1 --out {out}",
    "report": "report {made}/res --out {out}/report",
    "plot": "plot {made}/res --out {out}/curve.svg",
    "table": "table {made}/res --out {out}/t.csv",
    "sample": "sample {made}/run --n 2 --out {out}/s.png",
    "compress": "compress {made}/f.h5 --out {out}/c.h5",
    "import": "import --train {made}/x.npz --out {out}/i.h5",
    "convert": "convert {made}/run {out}/hf",
}


def command(words: str, made: Path, out: Path) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "probekit", *words.format(made=made, out=out).split()]


def run(words: list[str], limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess:
    """Run to the end."""
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False, preexec_fn=limit)


def make(made: Path) -> None:
    """What the verbs read: a run, a feature file, results, arrays."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(made / "x.npz", a=rng.normal(size=(200, 50)), labels=np.arange(200) % 3)
    for words in (
        TRAIN.replace("{out}", "{made}"),
        "extract igpt:{made}/run wandering-digits --limit 60 --out {made}/f.h5",
        "sweep {made}/f.h5 --Cs 0.1 --Cs 1 --out {made}/res",
    ):
        done = run(command(words, made, made))
        assert done.returncode == 0, done.stderr


def outcome(out: Path) -> dict[str, object]:
    """What a folder holds, without times and without what differs from run to run; leftovers are listed."""
    from igpt_model.hashing import hash_file

    found: dict[str, object] = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if not file.is_file() or "/.claims" in f"/{name}" or name.endswith(".lock") or "tensorboard" in name:
            continue
        if file.name in ("results.jsonl", "choices.jsonl"):
            found[name] = sorted(_figures(json.loads(line), str(out)) for line in file.read_text().splitlines())
        elif file.suffix in (".h5", ".safetensors", ".csv", ".png", ".svg", ".tex", ".md"):
            found[name] = hash_file(file)
        else:
            found[name] = "there"
        if ".partial" in name:
            found[name] = "a leftover"
    return found


def _figures(line: dict, out: str) -> str:
    for name in ("seconds", "created", "versions", "plan", "n_iter", "refit", "grad_rel", "gap", "feature_file"):
        line.pop(name, None)
    return json.dumps(line, sort_keys=True).replace(out, "")


def killed(verb: str, made: Path, scratch: Path, kills: int, rng: random.Random) -> list[str]:
    """Kill a verb at random moments until it gets through; returns what went wrong."""
    problems, whole = [], scratch / "whole"
    whole.mkdir(parents=True)
    begun = time.monotonic()
    done = run(command(VERBS[verb], made, whole))
    length = time.monotonic() - begun
    if done.returncode:
        return [f"undisturbed: {done.stderr[-300:]}"]
    expected = outcome(whole)
    done_kills, attempt = 0, 0
    while done_kills < kills:
        attempt += 1
        out = scratch / f"killed-{attempt}"
        out.mkdir()
        for _ in range(6):
            process = subprocess.Popen(
                command(VERBS[verb], made, out), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            try:
                process.communicate(timeout=rng.uniform(0.3, 1.1) * length)
            except subprocess.TimeoutExpired:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                process.communicate()
                done_kills += 1
        done = run(command(VERBS[verb], made, out))
        # `compress` and `convert` refuse to replace what is there already
        allowed = (0, 2) if verb in ("compress", "convert") else (0,)
        if done.returncode not in allowed or "Traceback" in done.stderr:
            problems.append(f"after kills: rc {done.returncode}: {done.stderr[-300:]}")
        found = outcome(out)
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if different:
            problems.append(f"differs: {', '.join(sorted(different)[:6])}")
        shutil.rmtree(out)
    return problems


def together(verb: str, made: Path, scratch: Path, n: int = 3) -> list[str]:
    """Several processes at once on one folder: each ends well, or says that another one is at it."""
    out = scratch / "together"
    out.mkdir(parents=True)
    words = command(VERBS[verb], made, out)
    processes = [subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(n)]
    problems = []
    codes = []
    for process in processes:
        _, errors = process.communicate()
        codes.append(process.returncode)
        if process.returncode not in (0, 2) or "Traceback" in errors:
            problems.append(f"rc {process.returncode}: {errors[-300:]}")
    if 0 not in codes:
        problems.append(f"no process got through: {codes}")
    return problems


def limited(verb: str, made: Path, scratch: Path) -> list[str]:
    """Limits of file size: a sentence and exit code 2 (or enough room), and the same command then goes on."""
    problems = []
    for size in (0, 2_000, 20_000, 200_000):
        out = scratch / f"limited-{size}"
        out.mkdir(parents=True)

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        done = run(command(VERBS[verb], made, out), limit)
        if done.returncode not in (0, 2) or "Traceback" in done.stderr:
            problems.append(f"file size {size}: rc {done.returncode}: {done.stderr[-300:]}")
        done = run(command(VERBS[verb], made, out))
        if done.returncode and verb not in ("compress", "convert"):
            problems.append(f"after file size {size}: rc {done.returncode}: {done.stderr[-300:]}")
    return problems


def dying_rank(made: Path, scratch: Path) -> list[str]:
    """One of two ranks is killed; the rest ends, and the run, started again, ends as one undisturbed."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "probekit"]
    words = [*start, *TRAIN.format(out=scratch / "ranks").split(), "--parallel", "ddp", "--no-tensorboard"]
    (scratch / "ranks").mkdir(parents=True)
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((scratch / "ranks").glob("run/checkpoints/0*5")) and process.poll() is None:
        time.sleep(0.05)
    ranks = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    if ranks:
        os.kill(int(ranks[-1]), signal.SIGKILL)
    process.communicate(timeout=1200)
    done = run(words)
    last = max((int(f.name) for f in (scratch / "ranks").glob("run/checkpoints/[0-9]*")), default=-1)
    return [] if done.returncode == 0 and last == 40 else [f"rc {done.returncode}, step {last}: {done.stderr[-300:]}"]


def main() -> int:
    """Run what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at least so many a verb")
    parser.add_argument("--only", default=",".join(VERBS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, failures = random.Random(asked.seed), 0
    print("| verb | kills | problems | at once | problems | file sizes | problems |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        make(made)
        for number, verb in enumerate(verb for verb in VERBS if verb in asked.only.split(",")):
            own = Path(scratch) / str(number)
            own.mkdir()
            by_kill = killed(verb, made, own, asked.kills, rng)
            at_once = together(verb, made, own)
            by_size = limited(verb, made, own)
            cells = [asked.kills, len(by_kill), 3, len(at_once), 4, len(by_size)]
            print(f"| {verb} | {' | '.join(map(str, cells))} |", flush=True)
            for text in [*by_kill, *at_once, *by_size]:
                print("   ", " ".join(text.split()), flush=True)
            failures += len(by_kill) + len(at_once) + len(by_size)
            shutil.rmtree(own)
        ranks = dying_rank(made, Path(scratch) / "ranks")
        print(f"a rank that dies: {ranks or 'resumed to the end'}", flush=True)
    return int(failures + len(ranks) > 0)


if __name__ == "__main__":
    sys.exit(main())
