"""The command itself: help, unknown verbs, exit codes, one sentence for the user's errors."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from importlib import import_module

import pytest

from probekit.cli.main import VERBS, app, main, users_sentence
from probekit.features.verify import verify
from probekit.runtime.errors import UserError
from tests.commands import write_features


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {verb} " in printed for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_a_sentence_for_each_flag(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"probekit {verb}" in capsys.readouterr().out
    module, _, function = VERBS[verb].function.partition(":")
    assert callable(getattr(import_module(module), function))
    assert all(one.parameter.help for one in app[verb].assemble_argument_collection())


def test_help_is_quick_and_needs_no_torch():
    code = "import sys; from probekit.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    # what takes long is torch: without it help takes about 0.5 s
    assert done.returncode == 0


def test_an_unknown_verb_gets_a_suggestion(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


def test_an_unknown_flag_is_the_users_error(capsys):
    assert main(["train", "digits", "--out", "x", "--no-such-flag", "3"]) == 2
    printed = capsys.readouterr().err
    assert "--no-such-flag" in printed
    assert "Traceback" not in printed


def raising(error):
    def app(*_, **__):
        raise error

    return app


def test_an_interrupt_while_a_lock_is_taken_comes_once_it_is_held_properly(capsys):
    """An exception within `Condition.__enter__` would leave the lock of a queue or future locked."""
    done = []

    class Taken:
        acquire = release = locked = None
        __enter__ = staticmethod(partial(signal.raise_signal, signal.SIGINT))

        def __exit__(self, *_):
            done.append("released")

    def run(_):
        with threading.Condition(Taken()):
            done.append("entered")
            time.sleep(60)
        done.append("left")

    assert main([], run=run) == 130
    assert done == ["entered", "released"]
    assert "interrupted" in capsys.readouterr().err


def test_an_interrupt_in_a_destructor_comes_after_it(capsys):
    """Python only prints what is raised in destructors and callbacks of weak references, and goes on."""

    class Freed:
        __del__ = staticmethod(partial(signal.raise_signal, signal.SIGINT))

    def run(_):
        del (freed := {"one": Freed()})["one"]
        assert not freed
        time.sleep(60)

    before = sys.unraisablehook
    assert main([], run=run) == 130
    printed = capsys.readouterr().err
    assert "interrupted" in printed
    assert "Traceback" not in printed
    assert sys.unraisablehook is before


def test_an_interrupt_that_a_library_turned_into_another_exception(capsys):
    before = signal.getsignal(signal.SIGINT)

    def library(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    assert main([], run=library) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert main([], run=lambda _: None) == 0


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("C was -1, but must be positive."), 2, "C was -1, but must be positive."),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 2, "cannot use /x/y: the disk is full; free some space and "),
        (PermissionError(errno.EACCES, "denied", "/x"), 2, "/x"),
        (FileNotFoundError("runs/x holds no checkpoint; train first."), 2, "holds no checkpoint"),
        (MemoryError(), 2, "there is not enough memory"),
        (ImportError("x.so: failed to map segment from shared object"), 2, "not enough memory"),
        (RuntimeError("could not create a primitive"), 2, "not enough memory"),
        (KeyError("ours"), 1, "error in probekit itself"),
        (OSError(errno.EPROTO, "Protocol error", "/x"), 1, "error in probekit itself"),
    ],
)
def test_an_error_gives_its_exit_code_and_a_traceback_only_if_it_is_ours(error, code, words, capsys):
    assert main(["train"], raising(error)) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert ("Traceback" in printed) == (code == 1)


def test_an_error_in_a_thread_of_a_library_is_one_line(capsys):
    def run(words):
        thread = threading.Thread(target=raising(OSError(errno.ENOSPC, "No space left", "/x/y")), args=(words,))
        thread.start()
        thread.join()

    before = threading.excepthook
    assert main(["train"], run) == 0
    assert capsys.readouterr().err.startswith("warning: cannot use /x/y: the disk is full")
    assert threading.excepthook is before


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "--debug"], raising(UserError("no."))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_are_not_the_users():
    assert users_sentence(RuntimeError("x")) is None


def test_warnings_are_one_line_without_a_source_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train"], lambda words: warnings.warn("3 fits\n did not converge", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: 3 fits did not converge\n"


@pytest.mark.parametrize(
    ("streams", "code"),
    [("<&- >&- 2>&-", 0), (">&-", 0), ("2>&-", 0), (">/dev/full", 2), ("2>/dev/full", 0), ("| head -n 1", 141)],
)
def test_streams_that_take_nothing(streams, code, tmp_path):
    """A closed stream's number must not become that of a file, and no stream stops what writes to another."""
    file = write_features(tmp_path / "f.h5", (1,))
    command = shlex.join([sys.executable, "-m", "probekit", "compress", str(file), "--out", str(tmp_path / "g.h5")])
    words = f"{command} {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert done.returncode in (code, 0 if "head" in streams else code), done.stderr  # all may be in the pipe already
    assert not re.search("Traceback|Exception ignored", done.stderr)
    assert verify(tmp_path / "g.h5").errors == []


@pytest.mark.parametrize("name", ["RANK", "SOURCE_DATE_EPOCH"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "01", " 0"])
def test_an_environment_variable_that_is_no_number(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert main(["datasets"]) == 2
    assert f"the environment variable {name} is {value!r}" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "0", "1", "5", "-3", "abc", "\u00b2", "9e9", "10" * 10, "1" * 5000])
def test_any_width_of_the_terminal(value):
    # a process of its own: the app keeps the width of the first help that it prints
    command = [sys.executable, "-m", "probekit", "sweep", "--help"]
    environment = {**os.environ, "COLUMNS": value, "LINES": value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert {"--train-rows", "--per-class", "--parallel"} <= set(re.findall(r"--[\w-]+", done.stdout))
    assert max(map(len, done.stdout.splitlines())) <= 1000


def test_a_backend_of_matplotlib_that_is_none(tmp_path):
    code = "from probekit.reports.figures.style import style\nwith style(): pass"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "x"}
    )
    assert "check MPLBACKEND in the environment" in done.stderr.splitlines()[-1]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_features(tmp_path / "f.h5", (1,))
    assert main(["compress", "~/f.h5", "--out=~/g.h5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["f.h5", "g.h5"]
    assert not (tmp_path / "~").exists()


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["demo"]) == 2
    assert "the current folder no longer exists" in capsys.readouterr().err


def test_an_error_is_one_line_whatever_it_names(capsys):
    assert main(["train"], raising(UserError("No \n\x1b[31m[red]:bug:[/red] here."))) == 2
    assert capsys.readouterr().err == "probekit: No \\x0a\\x1b[31m[red]:bug:[/red] here.\n"


@pytest.mark.parametrize("where", ["import sys; sys.exit(0)", "import sys\ndef data():\n    sys.exit()"])
def test_code_of_a_data_set_that_ends_the_program_is_an_error(where, tmp_path, monkeypatch, capsys):
    (tmp_path / "quits.py").write_text(where)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "quits", raising=False)
    assert main(["extract", "pixels", "quits:data", "--out", "f.h5"]) == 2
    assert "imported code called sys.exit(" in capsys.readouterr().err
    assert not (tmp_path / "f.h5").exists()
