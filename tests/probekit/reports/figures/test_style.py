"""Names in figures stay text, whatever they are."""

import re
import warnings
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from rich.cells import cell_len

from probekit.reports.figures.style import FigureOptions, brief, inline_svg, save_figure, shortened, style
from probekit.runtime.escape import visible


def test_what_looks_like_a_colour_or_a_link_in_a_name_is_left_alone():
    name = 'url(#a) #0072B2 xlink:href= id="b" href="#c font-family: d; <g id="e"> -->'
    with style("x", text_as_paths=False):
        figure = Figure()
        figure.text(0.1, 0.1, name, color="#0072b2")
        svg = inline_svg(figure, "x", "label")
    (text,) = re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.DOTALL)
    assert ElementTree.fromstring(f"<a>{text}</a>").text == name
    assert "fill: var(--c" in svg


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "\u202e", "\x00", "\ud800", "$\\frac$", "_a", "x" * 10_000])
def test_texts_of_the_command_line_are_text(name, tmp_path):
    options = FigureOptions(title=name, labels={"a": name})
    with style():
        figure = Figure()
        axes = figure.subplots()
        axes.set_title(options.title)
        axes.plot([0, 1], label=brief(options.labels["a"]))
        (shown,) = [text.get_text() for text in axes.legend().get_texts()]
        for path in save_figure(figure, tmp_path / "f"):
            assert path.stat().st_size > 500
    ElementTree.parse(tmp_path / "f.svg")
    assert shown.strip().removesuffix("...") == visible(name)[:80]
    assert len(name) < 80 or shown.endswith("...")


def test_one_warning_names_all_characters_that_the_font_lacks(tmp_path):
    with style():
        figure = Figure()
        figure.text(0.1, 0.1, "\N{CJK UNIFIED IDEOGRAPH-578B}\N{CJK UNIFIED IDEOGRAPH-540D}")
        with pytest.warns(UserWarning, match="no glyphs") as warned:
            save_figure(figure, tmp_path / "f")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a page's text is drawn by the browser, with its fonts
            inline_svg(figure, "x", "label")
    (one,) = warned
    assert "\N{CJK UNIFIED IDEOGRAPH-578B}\N{CJK UNIFIED IDEOGRAPH-540D}" in str(one.message)


def test_another_warning_of_matplotlib_is_passed_on(tmp_path):
    class Warns(Figure):
        def savefig(self, *args, **how):
            warnings.warn("something else", UserWarning, stacklevel=2)
            super().savefig(*args, **how)

    with style(), pytest.warns(UserWarning, match="something else"):
        save_figure(Warns(), tmp_path / "f", ("png",))


@pytest.mark.parametrize("most", [4, 10, 21])
@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-578B}"])
def test_a_shortened_name_keeps_both_ends_within_its_room(letter, most):
    found = shortened(f"a{letter * 50}-7", most)
    assert cell_len(found) <= most
    assert found.startswith("a")
    assert found.endswith("7")
    assert "…" in found
    assert shortened("a" * most, most) == "a" * most
