"""Text that comes from files or from the user, put into an output so that it stays text: one function a format.

Names of series, layers, data sets and classes travel into tables, figures, pages and the terminal. (HTML is escaped by
Jinja's autoescape and by `html.escape`.)
"""

import hashlib
import re
import shlex
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": r"\textminus{}",
    "\N{EN DASH}": r"\textendash{}",
    **{plain: f"\\{plain}" for plain in "&%$#_{}"},
}
# the colon, dot and @ of what GitHub would make a link or a mention
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#&$!@]|:(?=//)|(?<=[wW]{3})\.)")
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and signs without a glyph
_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20"  # of full width too, which spreadsheets in East Asia take


def visible(text: Any) -> str:
    r"""The text with control characters, line breaks and half surrogates written out: ESC becomes "\x1b".

    Characters that are displayed as nothing, or that reorder what is displayed, are written out too, and those that
    XML (SVG, HTML) does not allow.
    """
    return "".join(f"\\x{ord(c):02x}" if _hidden(c) else c for c in str(text))


def _hidden(character: str) -> bool:
    # U+200C and U+200D belong to the spelling of Persian and of languages of India
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
    return hidden or character in _BLANK or ord(character) & 0xFFFE == 0xFFFE


def terminal(text: Any) -> str:
    r"""For a terminal: as `visible`, but lines may break, since they are whole lines of ours."""
    return "\n".join(visible(line) for line in str(text).split("\n"))


def command(*words: Any) -> str:
    """A command of ours, to be typed in a shell as it is printed."""
    return shlex.join(["probekit", *map(str, words)])


def csv_cell(text: Any) -> str:
    """For a cell of a CSV file: a spreadsheet takes no formula from it.

    An apostrophe is put before text that begins like a formula, also behind a semicolon, which separates cells where
    the comma is the decimal sign. Spreadsheets show it as that text.
    """
    return re.sub(rf"(^|;)(?=[\s']*[{_FORMULA}])", r"\1'", visible(text))


def csv_text(frame: "pd.DataFrame", float_format: str | None = None) -> str:
    """A whole frame as CSV, each text in it, the names of columns among them, by `csv_cell`."""
    cells = frame.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell).rename(columns=csv_cell)
    return cells.to_csv(index=False, lineterminator="\n", float_format=float_format)


def file_name(text: Any) -> str:
    """For a part of a file's name: letters, digits, "-", "_" and "." only; "" where nothing is left."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in str(text))
    return plain.encode()[:100].decode(errors="ignore").strip("-.")


def file_names(texts: Sequence[str]) -> list[str]:
    """`file_name` of each; those that would be empty or alike, also where case is ignored, get a hash of their text."""
    plain = [file_name(text) for text in texts]
    folded = [name.casefold() for name in plain]
    for at, text in enumerate(texts):
        if not plain[at] or folded.count(folded[at]) > 1:
            own = hashlib.sha256(f"{texts[:at].count(text)} {text}".encode(errors="surrogatepass"))
            plain[at] = f"{plain[at]}-{own.hexdigest()[:8]}".strip("-")
    return plain


def latex(text: Any) -> str:
    """For LaTeX in text mode."""
    escaped = "".join(_LATEX.get(c, c) for c in visible(text))
    # two of a kind would become one longer dash, and a cell that begins so an argument of the line break before it
    escaped = re.sub(r"-(?=-)|[?!](?=\\textasciigrave)|,(?=,)|'(?=')", r"\g<0>{}", escaped)
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped)


def markdown(text: Any) -> str:
    """For Markdown, inside a line or a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", visible(text))


def mathtext(text: Any) -> str:
    """For matplotlib, which reads what stands between two dollar signs as a formula."""
    return visible(text).replace("$", r"\$")


def three_figures(value: float) -> str:
    """A number in three significant figures, from a thousand on whole: never with an exponent for being large."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
