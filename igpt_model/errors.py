"""The exception for input that cannot be used."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LENGTH = 300  # maximum characters of another library's message, which may quote a whole damaged file
LONGEST = 2_400  # maximum characters of our message, which may quote a name from such a file
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and symbols without a glyph


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        # shorten first, because escaping a text of many MB takes seconds and gigabytes
        super().__init__(shortened(visible(shortened(str(message)))))


def visible(text: Any) -> str:
    r"""The text with control characters, line breaks and lone surrogates escaped: ESC becomes "\x1b".

    Also escapes characters that are invisible, that reorder the displayed text, or that XML (SVG, HTML) does not allow.
    """
    return "".join(f"\\x{ord(c):02x}" if _hidden(c) else c for c in str(text))


def _hidden(character: str) -> bool:
    # U+200C and U+200D are needed to spell Persian and some Indian languages
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
    return hidden or character in _BLANK or ord(character) & 0xFFFE == 0xFFFE


def shortened(message: str) -> str:
    """Return the message, shortened in the middle to about `LONGEST` characters."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 3 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, for use within a sentence, or the name of its class."""
    # remove terminal colour codes
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[: 2 * LENGTH])
    line = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."


@contextmanager
def explained(what: str, advice: str = "", *kinds: type[Exception], named: bool = False) -> Iterator[None]:
    """Raise errors of other code (of `kinds`, or of any kind) as a `UserError`: "`what` (first line); `advice`.".

    With `named`, the kind of the error stands before its first line. A `UserError` is passed on as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not isinstance(error, kinds or Exception):
            raise
        kind = f"{type(error).__name__}: " if named else ""
        raise UserError(f"{what} ({kind}{first_line(error)}){advice and '; '}{advice}.") from error
