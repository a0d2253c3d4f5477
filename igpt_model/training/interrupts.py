"""Ctrl-C waits until the weights are whole again."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_deferred(*signals: int) -> Iterator[list[int]]:
    """Collect these signals (Ctrl-C is SIGINT) while the weights are between two states.

    Outside the main thread there are none to collect.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
