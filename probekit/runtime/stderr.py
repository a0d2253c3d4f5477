"""Remarks on stderr, which nobody may be able to take."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def losable() -> Iterator[None]:
    """Within it, a remark on stderr that cannot be written (`2> log` on a full disk) is lost, and the work goes on."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass
