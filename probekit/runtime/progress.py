"""Count the finished fits of a sweep, for its progress bar."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


class FitProgress:
    """Number of finished fits in a call: those of finished probes, by any process, and those of the current probe.

    Parameters
    ----------
    sizes : fits of each probe, by key
    done : keys finished before
    """

    def __init__(self, sizes: dict[str, int], done: set[str], progress: Progress) -> None:
        self.sizes, self.done, self.progress = sizes, done, progress
        self.total = sum(sizes.values())
        self.finished = self.at_hand = 0

    def finish(self, keys: set[str]) -> None:
        """Mark these probes as finished."""
        self.finished, self.at_hand = sum(self.sizes[key] for key in self.done | keys), 0
        self.progress(self.finished, self.total)

    def count(self, fits: int) -> None:
        """Add finished fits of the current probe."""
        self.at_hand += fits
        self.progress(min(self.finished + self.at_hand, self.total), self.total)
