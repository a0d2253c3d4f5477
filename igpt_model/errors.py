"""The exception for input that cannot be used."""

import re

LENGTH = 300  # maximum characters of another library's message, which may quote a whole damaged file
LONGEST = 2_400  # maximum characters of our message, which may quote a name from such a file


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(shortened(str(message)))


def shortened(message: str) -> str:
    """Return the message, shortened in the middle to about `LONGEST` characters."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 3 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, for use within a sentence, or the name of its class."""
    # remove terminal colour codes
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[: 2 * LENGTH])
    line = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
