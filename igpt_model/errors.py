"""The one exception that means "the user's input cannot be used"."""

import re

LENGTH = 300  # characters of another library's message: it may quote a whole damaged file


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to be quoted in a sentence; its class's name if it has none."""
    # without the codes that colour a terminal
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[: 2 * LENGTH])
    line = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
