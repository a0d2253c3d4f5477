"""The terminal curve, read back from what was printed."""

from io import StringIO

from rich.console import Console

from probekit.reports.terminal import print_panel


def printed(panel, width):
    console = Console(file=StringIO(), width=width, force_terminal=False, color_system=None)
    print_panel(panel, console)
    return console.file.getvalue()


def test_one_mark_a_layer_and_the_two_sentences(panel):
    text = printed(panel, 90)
    plot, _, rest = text.partition("└")
    assert plot.count("●") == 10
    assert plot.count("○") == 1
    assert plot.count("▿") >= 9
    words = " ".join(rest.split())
    for sentence in panel.models[0].verdict.sentences():
        assert sentence in words


def test_higher_accuracy_stands_higher(panel):
    plot = printed(panel, 90).partition("└")[0].splitlines()
    rows = {}
    for number, line in enumerate(plot):
        for column, character in enumerate(line):
            if character in "●○":
                rows[column] = number
    by_depth = [rows[column] for column in sorted(rows)]
    series = panel.models[0]
    assert len(by_depth) == len(series.depths)
    for a in range(len(by_depth)):
        for b in range(len(by_depth)):
            if series.top1[a] > series.top1[b] + 5:
                assert by_depth[a] < by_depth[b]


def test_narrow_terminals_hold_the_picture(panel):
    assert max(len(line) for line in printed(panel, 60).splitlines()) <= 60
