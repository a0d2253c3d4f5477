"""Names in outputs: what goes in comes out as text, whatever it is."""

import csv
import html
import io
import re
import unicodedata
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.runtime import escape

HOSTILE = [
    r"\input{/etc/passwd}", "=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", " =1", "\t=1", "'=1", "a|b", "a\nb", "a\rb",
    "\x1b]0;title\x07", "\x9b31m", "$x^2$", "$", r"$\frac$", "~^_{}%&#", "<script>alert(1)</script>", "[x](js:1)",
    "![i](http://h)", "`code`", "**b**", "--", "---", "[cell]", "*star", "\u202egnp", "\ud800", "?`", "\0", "",
    "a;=1", "a;\u3000+1", "\uff1d1", "\xa0=1", "\ufffe", "\U0001ffff", "a\u200bb",
    "\u00ad", "\U000e0041", "]]>", "&amp;", "\u034f", "\u2800", "\u3164", "a''b'''", "[1](2)",
    "http://h.org", "www.h.org", "a@h.org",
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.text("\\$`|*_~^=+-@[]<>#%&{};\x1b\n'\"", max_size=12)
)


@settings(max_examples=300)
@given(NAMES)
def test_nothing_invisible_is_left(name):
    shown = escape.visible(name)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Cf") and c not in "\u200c\u200d" for c in shown)
    assert escape.visible(shown) == shown
    assert shown.encode().decode() == shown
    assert set(escape.visible_lines(name)) - {"\n"} <= set(shown) | set("\\x0123456789abcdef")


@settings(max_examples=300)
@given(NAMES)
def test_what_is_visible_may_stand_in_xml(name):
    shown = escape.visible(name)
    assert (ElementTree.fromstring(f"<a>{html.escape(shown)}</a>").text or "") == shown


@settings(max_examples=300)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_csv_cells_come_back_and_are_no_formulas(names):
    frame = pd.DataFrame([[escape.csv_cell(name) for name in names]])
    (row,) = csv.reader(io.StringIO(frame.to_csv(index=False, header=False)))
    for cell, name in zip(row, names, strict=True):
        # some programs separate cells by semicolons
        assert not any(part.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) for part in cell.split(";"))
        assert cell.replace("'", "") == escape.visible(name).replace("'", "")


@settings(max_examples=300)
@given(st.one_of(NAMES, st.sampled_from(["..", ".", "../../x", "a/b", "-rf", ".hidden", "a" * 5000, "\0", "\ud800"])))
def test_a_file_name_stays_in_its_folder(name):
    made = escape.file_name(name)
    assert len(made) <= 100
    assert not made.startswith((".", "-"))
    assert all(c.isalnum() or c in "-_." for c in made)


@settings(max_examples=300)
@given(st.lists(NAMES, max_size=8))
def test_names_of_files_are_never_alike(names):
    names = [*names, *names[:1], *(name.upper() for name in names), *(name.replace("/", "-") for name in names)]
    made = escape.file_names(names)
    assert len({name.casefold() for name in made}) == len(names)
    assert all(made)
    assert made == escape.file_names(names)


def test_names_of_columns_are_cells_too():
    assert escape.csv_text(pd.DataFrame({"=a": ["-b"], "c": [1.0]})) == "'=a,c\n'-b,1.0\n"


def undo_latex(text):
    """A reader of the few commands that may occur: the text that TeX would set."""
    words = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
        "textbar": "|", "textasciigrave": "`", "textminus": "\N{MINUS SIGN}", "textendash": "\N{EN DASH}",
    }  # fmt: skip
    text = re.sub(r"\\(text[a-z]+)\{\}", lambda m: f"\0{ord(words[m[1]]):x};", text)
    text = re.sub(r"\\([&%$#_{}])", lambda m: f"\0{ord(m[1]):x};", text)
    assert not set(text) & set("\\&%$#_~^"), text
    text = text.replace("{}", "").replace("{[}", "[").replace("{*}", "*")
    assert not set(text) & set("{}"), text
    return re.sub(r"\0([0-9a-f]+);", lambda m: chr(int(m[1], 16)), text)


@settings(max_examples=300)
@given(NAMES)
def test_latex_holds_no_command_of_the_name(name):
    written = escape.latex(name)
    assert undo_latex(written) == escape.visible(name)
    assert not written.lstrip().startswith(("[", "*"))
    assert "--" not in written


@settings(max_examples=300)
@given(NAMES)
def test_markdown_shows_the_name(name):
    markdown_it = pytest.importorskip("markdown_it")
    (inline,) = [t for t in markdown_it.MarkdownIt().parse(f"x{escape.markdown(name)}x") if t.type == "inline"]
    assert all(child.type in ("text", "text_special") for child in inline.children)
    assert not re.search(r"(?i)(?<!\\)://|www\.|(?<!\\)@", escape.markdown(name))
    # CommonMark trims nothing inside a line, and takes no entity apart here since "&" is escaped
    assert "".join(child.content for child in inline.children) == f"x{escape.visible(name)}x"


def test_a_markdown_table_keeps_its_columns():
    frame = pd.DataFrame({"a": [escape.markdown(name) for name in HOSTILE], "b": "1"})
    lines = frame.to_markdown(index=False, disable_numparse=True).splitlines()
    assert len(lines) == len(HOSTILE) + 2
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)


@settings(max_examples=60)
@given(NAMES)
def test_figures_read_no_formula(name):
    from matplotlib.cbook import is_math_text

    assert not is_math_text(escape.mathtext(name))


@given(st.floats(1e-3, 1e12))
def test_a_number_in_three_figures_is_near_and_has_no_exponent(value):
    shown = escape.three_figures(value)
    assert re.fullmatch(r"[\d,]+(\.\d+)?", shown)
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=5.1e-3)  # half a unit of the third figure
