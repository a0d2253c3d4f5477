"""The loop of a run, pre-training and fine-tuning alike: update, record, look, until it is over or stopped."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

from igpt_model.training.distributed import Ranks
from igpt_model.training.interrupts import interrupts_deferred

Record = dict[str, Any]


class Run(Protocol):
    """What the loop asks of a run."""

    ranks: Ranks
    step: int
    """Updates done."""
    tokens_per_step: int

    @property
    def over(self) -> bool:
        """Whether no update is left to do."""

    @property
    def recording(self) -> bool:
        """Whether a record is due after this update; before an evaluation and before a checkpoint one always is."""

    def update(self) -> None:
        """Change the weights and count the step."""

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step`."""

    def losses(self) -> Record:
        """Return the losses since the last record and the gradient's norm; raise `TrainingDiverged`."""

    def evaluate_and_save(self, pausing: bool) -> Iterator[Record]:
        """Evaluate and save where that is due after this update; a run that pauses is saved."""

    def rescue(self) -> None:
        """Save what is not saved yet: the loop was left between two updates, with whole weights."""

    def end(self) -> Record:
        """Return the last record."""

    def log(self, record: Record) -> Record:
        """Write a record down and return it."""

    def close(self) -> None:
        """Let go of files and threads."""


def records(run: Run, stop: Callable[[], bool] | None) -> Iterator[Record]:
    """Update until the run is over or until `stop` says so, yielding records."""
    if run.ranks.size == 1:
        yield from _records(run, stop)
        return
    # torchrun and Slurm end their processes by SIGTERM; ranks must stop at the same update
    with interrupts_deferred(signal.SIGINT, signal.SIGTERM) as interrupted:
        yield from _records(run, lambda: bool(interrupted) or (stop is not None and stop()))


def _records(run: Run, stop: Callable[[], bool] | None) -> Iterator[Record]:
    several, wanted = run.ranks.size > 1, False
    clock, counted = time.perf_counter(), 0
    try:
        while not run.over:
            with nullcontext() if several else interrupts_deferred(signal.SIGINT) as interrupted:
                run.update()
            counted += 1
            recording = run.recording
            wanted = wanted or bool(interrupted) or (stop is not None and stop())
            # ranks agree when they exchange losses anyway: asking at every update would have them wait
            pausing = wanted if not several else recording and run.ranks.any(wanted)
            if recording or pausing:
                yield run.log(step_record(run, counted, time.perf_counter() - clock))
                yield from run.evaluate_and_save(pausing)
                # only now, so that evaluations, checkpoints and whoever reads records are not in tokens a second
                clock, counted = time.perf_counter(), 0
            if interrupted:
                raise KeyboardInterrupt
            if pausing and not run.over:
                yield {"kind": "paused", "step": run.step}
                return
        yield run.end()
    except (GeneratorExit, KeyboardInterrupt):
        # the loop over the records was left, or Ctrl-C came between two updates; several ranks cannot know that the
        # others left as well
        if not several:
            run.rescue()
        raise
    finally:
        run.close()


def step_record(run: Run, updates: int, seconds: float) -> Record:
    """Return the record of so many updates, which took so long."""
    losses = run.losses()
    return {
        "kind": "step",
        "step": run.step,
        **losses,
        "lr": run.rate(run.step - 1),
        "tokens_per_s": updates * run.tokens_per_step / seconds,
    }
