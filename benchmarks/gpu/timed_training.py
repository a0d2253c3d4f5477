"""Training for so many minutes: the number of updates is set from a measured rate before the first one that counts.

The learning rate's cosine must know where it ends, so a run cannot simply be cut off. A short run on a side folder
measures an update, an evaluation and a checkpoint; the plan made of it is written to `plan.json`, and whoever comes
again trains by that plan. A run that diverges is moved aside, and the rest of its updates are trained with a third of
the rate, as the paper lowers it.
"""

import json
import shutil
import time
from dataclasses import replace

import numpy as np

from igpt_model import TrainConfig, atomic, train
from igpt_model.training.pretrain import TrainingDiverged

EVALUATIONS, CHECKPOINTS = 20, 4
SHARE = 0.97  # of the minutes that are planned for: rates vary
LEAST_LEFT = 0.25  # of the updates: with fewer left after divergence a new run is not worth its minutes


def spread(config, steps):
    """The settings for so many updates: warm-up over a twentieth, evaluations and checkpoints evenly."""
    return replace(
        config,
        steps=steps,
        warmup_steps=max(5, steps // 20),
        eval_every=max(1, -(-steps // EVALUATIONS)),
        checkpoint_every=max(1, -(-steps // CHECKPOINTS)),
        log_every=max(1, min(50, steps // 20)),
        keep_at=(),
        keep_last=1,
    )


def measure(config, pictures, folder, updates):
    """Seconds of an update, an evaluation and a checkpoint: the later part of a short run, compilation left out."""
    shutil.rmtree(folder, ignore_errors=True)
    every = max(1, updates // 8)
    short = replace(spread(config, updates), log_every=every, eval_every=updates, checkpoint_every=updates)
    rates, seconds, clock = [], {}, time.perf_counter()
    for told in train(short, *pictures[:2], folder, palette=pictures[2]):
        now = time.perf_counter()
        seconds[told["kind"]] = now - clock  # the last of each kind stays
        clock = now
        if told["kind"] == "step":
            rates.append(told["tokens_per_s"])
    shutil.rmtree(folder)
    per_image = config.resolution**2
    return {
        "s_per_update": config.batch_size * per_image / float(np.median(rates[len(rates) // 2 :])),
        "s_per_evaluation": seconds["eval"],
        "s_per_checkpoint": seconds["checkpoint"],
    }


def planned_steps(measured, minutes):
    """Updates that fit the minutes beside the evaluations and checkpoints."""
    rest = 60 * minutes * SHARE
    rest -= (EVALUATIONS + 1) * measured["s_per_evaluation"] + (CHECKPOINTS + 1) * measured["s_per_checkpoint"]
    return max(10, int(rest / measured["s_per_update"]))


def make_plan(config, pictures, out, minutes, updates):
    """The plan in `out`, made now if there is none."""
    place = out / "plan.json"
    if not place.exists():
        compiled = config.compile
        try:
            measured = measure(config, pictures, out / "measured", updates)
        except Exception as error:
            # a GPU's minutes are dear: go on without the compiler, but say so here and in the plan
            if not compiled:
                raise
            print(f"torch.compile failed, so the run is not compiled: {type(error).__name__}: {error}", flush=True)
            compiled = False
            measured = measure(replace(config, compile=False), pictures, out / "measured", updates)
        steps = planned_steps(measured, minutes)
        settings = {**config.to_dict(), "compile": compiled}
        plan = {"minutes": minutes, "steps": steps, "config": settings, "measured": measured, "diverged": []}
        atomic.write_json(place, plan)
    return json.loads(place.read_text())


def train_within(config, pictures, out, minutes, updates, until=None, train=train):
    """Train by the plan; a second call goes on.

    Parameters
    ----------
    config : TrainConfig, whose steps do not count
    pictures : training and validation pictures (N, P, P, 3) and the palette
    minutes : of training in all, evaluations and checkpoints counted in, measuring (a minute or so) not
    updates : of the short run that measures
    until : `time.monotonic()` at which to save and pause, or None

    Returns
    -------
    dict
        The plan, with "done": whether all updates were made.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(config, pictures, out, minutes, updates)
    while True:
        settings = {**plan["config"], "threads": config.threads}
        run = spread(TrainConfig(**settings), plan["steps"])
        step, clock = 0, time.perf_counter()
        try:
            stop = (lambda: time.monotonic() > until) if until is not None else None
            for told in train(run, *pictures[:2], out / "run", palette=pictures[2], stop=stop):
                step = told["step"]
                if told["kind"] in ("start", "eval", "paused", "end"):
                    loss = f", val loss {told['val_loss']:.4f}" if told["kind"] == "eval" else ""
                    spent = time.perf_counter() - clock
                    print(f"{told['kind']}: update {step} of {run.steps}{loss}, {spent:.0f} s", flush=True)
            return {**plan, "done": step >= run.steps}
        except TrainingDiverged as error:
            left = plan["steps"] - step
            if left < LEAST_LEFT * plan["steps"] or len(plan["diverged"]) > 2:
                raise
            print(f"diverged at update {step} with rate {run.lr:.2g}: {error}", flush=True)
            (out / "run").rename(out / f"run-diverged-{len(plan['diverged'])}")
            plan["diverged"].append({"lr": run.lr, "step": step})
            plan["config"]["lr"], plan["steps"] = run.lr / 3, left
            atomic.write_json(out / "plan.json", plan)
