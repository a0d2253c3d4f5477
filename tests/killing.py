"""An end like that of SIGKILL inside a function, in this process: nothing below the test catches it and goes on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for SIGKILL."""


@contextmanager
def killed_in(function: Callable[..., Any], event: str = "call") -> Iterator[None]:
    """Raise `Killed` when `function` is next entered, or with event "return" when it is left; the body must get there.

    The interpreter's profile hook raises it, so that no module's attribute need be replaced.
    """

    def watch(frame: Any, what: str, argument: object) -> None:
        if what == event and frame.f_code is function.__code__:  # type: ignore[attr-defined]
            raise Killed

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        sys.setprofile(before)
