"""Progress off a terminal: plain lines, not too many, with rate and time left."""

import io
import os
from contextlib import redirect_stderr

import pytest

from probekit.runtime.escape import visible
from probekit.runtime.progress_bar import progress_bar, shown


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_plain_lines_now_and_then(capsys):
    clock = Clock()
    with progress_bar("train", "steps", seconds_between_lines=10, clock=clock) as show:
        for step in range(41):
            show(step, 40, f"loss {step}")
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 2/40 steps, 1 steps/s, 38 s left, loss 2",  # soon, so that nobody wonders whether it has begun
        "train: 12/40 steps, 1 steps/s, 28 s left, loss 12",
        "train: 22/40 steps, 1 steps/s, 18 s left, loss 22",
        "train: 32/40 steps, 1 steps/s, 8 s left, loss 32",
        "train: 40/40 steps, 1 steps/s, loss 40",
    ]


def test_work_done_by_an_earlier_run_is_not_counted_in_the_rate(capsys):
    clock = Clock()
    with progress_bar("train", "steps", seconds_between_lines=0, clock=clock) as show:
        show(1000, 1100)
        clock.now += 10
        show(1050, 1100)
    assert "1050/1100 steps, 5 steps/s, 10 s left" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stderr(terminal), progress_bar("extract", "images") as show:
        show(5, 10, "note")
    printed = terminal.getvalue()
    assert "extract" in printed
    assert "5/10" in printed


def test_the_argument_of_public_functions(capsys, monkeypatch):
    def mine(done, total):
        pass

    for given, expected in ((mine, mine), (False, None), (None, None)):
        with shown(given, "sweep", "fits") as progress:
            assert progress is expected
    with shown(True, "sweep", "fits") as progress:
        progress(2, 2)
    assert "sweep: 2/2 fits" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":bug:", "\x1b[31m", "a\nb", "{0} %s", "x" * 10_000])
def test_a_name_is_text_in_it(name, terminal):
    file = io.StringIO()
    file.isatty = lambda: terminal
    with redirect_stderr(file), progress_bar(f"extract {name}", "images") as show:
        show(1, 1)
    printed = file.getvalue()
    assert visible(name)[:20] in printed
    assert not terminal or len(printed) < 5000


def test_lines_that_cannot_be_written_stop_no_work():
    with open("/dev/full", "w") as full, redirect_stderr(full), progress_bar("train", "steps") as show:
        show(1, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left is written when it is closed
