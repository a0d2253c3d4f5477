"""The one exception that means "the user's input cannot be used"."""

import re

LENGTH = 300  # characters of another library's message: it may quote a whole damaged file


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says first, to stand inside a sentence; its class's name where it says nothing."""
    # without the codes that colour a terminal
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[: 2 * LENGTH])
    line = (said.strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
