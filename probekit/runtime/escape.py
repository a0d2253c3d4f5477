"""Escape text from files or the user for an output format: one function per format.

Names of series, layers, data sets and classes appear in tables, figures, pages and the terminal. HTML is escaped by
Jinja's autoescape and by `html.escape`.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from igpt_model.errors import visible as visible

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
# the colon, dot or @ of text that GitHub would turn into a link or a mention
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#&$!@]|:(?=//)|(?<=[wW]{3})\.)")
_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20"  # includes full-width forms, which East Asian spreadsheets accept


def visible_lines(text: Any) -> str:
    """As `visible`, but lines may break: for a whole page or file of ours."""
    return "\n".join(visible(line) for line in str(text).split("\n"))


def command(*words: Any) -> str:
    """A probekit command, quoted so that it can be pasted into a shell."""
    return shlex.join(["probekit", *map(str, words)])


def csv_cell(text: Any) -> str:
    """Escape a CSV cell so that a spreadsheet does not evaluate it as a formula.

    Text that begins like a formula gets an apostrophe in front, also after a semicolon, which separates cells in
    locales with a decimal comma. Spreadsheets display such a cell as text.
    """
    return re.sub(rf"(^|;)(?=[\s']*[{_FORMULA}])", r"\1'", visible(text))


def csv_text(frame: "pd.DataFrame", float_format: str | None = None) -> str:
    """A frame as CSV, with all text, including the column names, escaped by `csv_cell`."""
    cells = frame.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell).rename(columns=csv_cell)
    return cells.to_csv(index=False, lineterminator="\n", float_format=float_format)


def file_name(text: Any) -> str:
    """Escape a part of a file name to letters, digits, "-", "_" and "."; "" if nothing is left."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in str(text))
    return plain.encode()[:100].decode(errors="ignore").strip("-.")


def file_names(texts: Sequence[str]) -> list[str]:
    """`file_name` of each text; names that would be empty or equal, ignoring case, get a hash of their text."""
    plain = [file_name(text) for text in texts]
    folded = [name.casefold() for name in plain]
    for at, text in enumerate(texts):
        if not plain[at] or folded.count(folded[at]) > 1:
            own = hashlib.sha256(f"{texts[:at].count(text)} {text}".encode(errors="surrogatepass"))
            plain[at] = f"{plain[at]}-{own.hexdigest()[:8]}".strip("-")
    return plain


def latex(text: Any) -> str:
    """Escape text for LaTeX in text mode."""
    escaped = "".join(_LATEX.get(c, c) for c in visible(text))
    # two in a row would become one longer dash, and a cell that begins so an argument of the preceding line break
    escaped = re.sub(r"-(?=-)|[?!](?=\\textasciigrave)|,(?=,)|'(?=')", r"\g<0>{}", escaped)
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped)


def markdown(text: Any) -> str:
    """Escape text for Markdown, within a line or a table cell."""
    return _MARKDOWN.sub(r"\\\1", visible(text))


def mathtext(text: Any) -> str:
    """Escape text for matplotlib, which renders text between two dollar signs as a formula."""
    return visible(text).replace("$", r"\$")


def three_figures(value: float) -> str:
    """A number with three significant figures, or as an integer from 1,000, never with an exponent for being large."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
