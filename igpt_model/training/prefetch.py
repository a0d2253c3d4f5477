"""The next step's batch, drawn while the device works on this one's.

A batch is a function of its step alone, so drawing ahead changes nothing about it.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class DrawnAhead(Generic[T]):
    """Calls `draw` for a step; with `ahead`, a thread then draws the step after it.

    Parameters
    ----------
    draw : callable
        Gives the batch of a step; it must not depend on anything that other steps change.
    steps : int
        None is drawn from this step on.
    ahead : bool
        False where the device is the processor that would draw.
    """

    def __init__(self, draw: Callable[[int], T], steps: int, ahead: bool) -> None:
        self.draw, self.steps = draw, steps
        self.pool = ThreadPoolExecutor(1, "batches") if ahead else None
        self.next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Return the batch of a step; what went wrong while it was drawn ahead is raised here."""
        if self.pool is None:
            return self.draw(step)
        drawn = self.next[1].result() if self.next is not None and self.next[0] == step else self.draw(step)
        self.next = (step + 1, self.pool.submit(self.draw, step + 1)) if step + 1 < self.steps else None
        return drawn

    def close(self) -> None:
        """Wait for what is being drawn and end the thread."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
