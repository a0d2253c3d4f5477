"""How many fits of a sweep are done, for its progress: whole probes by anybody, and fits within the one at hand."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


class FitProgress:
    """Fits done of all that a call asks for: by finished probes, whoever made them, and within the one at hand.

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
        """Tell that these probes are finished."""
        self.finished, self.at_hand = sum(self.sizes[key] for key in self.done | keys), 0
        self.progress(self.finished, self.total)

    def count(self, fits: int) -> None:
        """Tell that the probe at hand has so many fits more."""
        self.at_hand += fits
        self.progress(min(self.finished + self.at_hand, self.total), self.total)
