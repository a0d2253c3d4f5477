"""Optional messages on stderr, which may not be writable."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def losable() -> Iterator[None]:
    """Ignore a failure to write to stderr within the block (`2> log` on a full disk), so that the work continues."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass
