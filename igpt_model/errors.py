"""The one exception that means "the user's input cannot be used"."""

import re
import unicodedata
from typing import Any

LENGTH = 300  # characters of another library's message: it may quote a whole damaged file
LONGEST = 2_400  # characters of a sentence of ours, which may quote a name from such a file
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and symbols without a glyph


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(shortened(visible(message)))


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
    """Return the message, or the two ends of one of more than `LONGEST` characters."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 3 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to be quoted in a sentence, or its class's name."""
    # without the codes that colour a terminal
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[: 2 * LENGTH])
    line = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
