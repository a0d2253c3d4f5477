"""Read the next item (a batch of a run, rows of a file) while the caller uses the current one."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


def read_ahead(items: Iterable[Item], read: Callable[[Item], T], ahead: bool = True) -> Generator[T]:
    """Yield `read(item)` for every item in order; with `ahead`, a thread reads the next one in the meantime.

    An error is raised when its item is due.
    """
    if not ahead:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        following: Future[T] | None = None
        for item in items:
            waiting, following = following, thread.submit(read, item)
            if waiting is not None:
                yield waiting.result()
        if following is not None:
            yield following.result()
