"""`probekit`: the command that finds the verb, runs it and turns what went wrong into one sentence and an exit code.

Exit codes: 0 done; 2 the user's input; 1 our fault; 130 interrupted, with what was finished saved.
"""

import difflib
import errno
import inspect
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console

from probekit import __version__
from probekit.cli.console import one_voice, speaks
from probekit.cli.numbers import check_numbers
from probekit.runtime.errors import UserError
from probekit.runtime.escape import terminal, visible

MAKE = Group.create_ordered("One command")
MODEL = Group.create_ordered("Models")
MEASURE = Group.create_ordered("Features and probes")
SHOW = Group.create_ordered("Results")
LOOK = Group.create_ordered("Before and after")

# Verbs are named here with their one line of help, so that `probekit --help` need not import torch.
VERBS: dict[str, tuple[Group, str]] = {
    "demo": (MAKE, "From nothing to a depth curve: minutes on two CPU cores."),
    "study": (MAKE, "Encoders on data sets: extract, sweep, join layers, controls, report."),
    "train": (MODEL, "Train an iGPT on a data set and write a run folder."),
    "finetune": (MODEL, "Train a pre-trained iGPT with a linear head on labelled pictures."),
    "extract": (MEASURE, "Write every layer's pooled features of a data set to one file."),
    "sample": (MODEL, "Draw pictures from a trained iGPT."),
    "convert": (MODEL, "Weights to and from Hugging Face's format."),
    "sweep": (MEASURE, "Probe every layer of a feature file over a path of penalties."),
    "concat": (MEASURE, "Probe joined layers."),
    "import": (MEASURE, "Make a feature file from arrays that somebody else made."),
    "predict": (MEASURE, "Classify pictures with a stored probe."),
    "report": (SHOW, "Write depth curves, tables and an HTML page."),
    "compare": (SHOW, "Compare two results on the test rows they share."),
    "plot": (SHOW, "Draw one figure to a file."),
    "table": (SHOW, "Write one table to a file."),
    "plan": (LOOK, "Say what time, memory and disk train, extract and sweep will take."),
    "datasets": (LOOK, "List the data sets known by name, or fetch one."),
    "compress": (LOOK, "Rewrite a feature file in compressed chunks."),
    "verify": (LOOK, "Check a feature file for damage and doubtful contents."),
    "inspect": (LOOK, "Show what a feature file holds, layer by layer."),
}

app = App(
    name="probekit",
    version=f"probekit {__version__}",
    default_parameter=Parameter(negative_iterable=()),
    help="From images to the depth curve of any visual encoder, with certified linear probes.",
    help_epilogue=(
        "Every verb: `probekit VERB --help`. `--debug` shows the traceback of an error. "
        "The same command, run again after an interruption, goes on."
    ),
)
FUNCTIONS = {"import": "import_features:import_"}  # a word of the language can name no module
for _verb, (_group, _help) in VERBS.items():
    app.command(f"probekit.cli.{FUNCTIONS.get(_verb, f'{_verb}:{_verb}')}", name=_verb, help=_help, group=_group)

# what a user can put right: the folder, the rights, the disk
_USERS_OS_ERRORS = {
    errno.ENOENT: "it does not exist; check the path",
    errno.EACCES: "this user may not read or write there; give another place, or change its rights",
    errno.EPERM: "this user may not read or write there; give another place, or change its rights",
    errno.EROFS: "the file system is read-only; give another place",
    errno.ENOSPC: "the disk is full; free some space, and the same command goes on",
    errno.EDQUOT: "the disk quota is used up; free some space, and the same command goes on",
    errno.ENOTDIR: "a part of that path is a file, not a folder; give another path",
    errno.EISDIR: "it is a folder, not a file; give a file",
    errno.EFBIG: "the file would be larger than this system or `ulimit -f` allows; the same command goes on",
    errno.ELOOP: "it is a link where a file was expected, or links in a circle; give the path itself",
    errno.ENXIO: "it is a pipe or a device, not a file; give a file",
    errno.ENODEV: "it is a pipe or a device, not a file; give a file",
    errno.ENOTEMPTY: "the folder is not empty; give another name",
    errno.EBUSY: "it is in use; wait, or give another path",
    errno.ETXTBSY: "it is in use; wait, or give another path",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; close some programs",
    errno.EIO: "the disk reports an error; copy what is left to another one",
    errno.ESTALE: "the network file system has lost it; run the same command again",
    errno.EAGAIN: "this system refuses another process or thread; raise `ulimit -u` or give fewer --workers",
    errno.ENOMEM: "there is not enough memory; give smaller sizes or fewer --workers",
    errno.EEXIST: "it exists already; give another name",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : the arguments after the program's name; None takes them from the process.

    Returns
    -------
    The exit code: 0, 1, 2, 130, or 141 when nobody reads stdout any more.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal that is not UTF-8 must not stop a result from being shown
            stream.reconfigure(errors="backslashreplace")
    if tokens and not tokens[0].startswith("-") and tokens[0] not in VERBS:
        near = difflib.get_close_matches(tokens[0], VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}."
        return _say(f"there is no verb {tokens[0]!r}; {hint}", 2)
    try:
        if tokens[1:] and tokens[0] in VERBS and {"--help", "-h"} & set(tokens):
            whole_help(tokens[0])
        with one_voice():
            command, given, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
            check_numbers(given)
            command(*given.args, **given.kwargs)
    except KeyboardInterrupt:
        return _say("interrupted; what was finished is saved, and the same command goes on from there.", 130)
    except BrokenPipeError:
        # whoever read stdout has ended (`| head`): nothing can be said any more, and nothing is at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UserError, CycloptsError, OSError, SystemExit, Exception) as error:
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if debug:
            traceback.print_exc()
        sentence = users_sentence(error)
        if sentence is not None:
            return _say(sentence, 2)
        if not debug:
            traceback.print_exc()
        return _say(
            f"this is an error of probekit's own ({type(error).__name__}); please report it with the lines above.", 1
        )
    return 0


def whole_help(verb: str) -> None:
    """Let `probekit VERB --help` say all that the verb's docstring says, and not only its line of `probekit --help`."""
    command = app[verb]
    command.help = (inspect.getdoc(command.default_command) or command.help).split("\nParameters\n")[0].strip()


def users_sentence(error: BaseException) -> str | None:
    """One sentence for an error that the user can put right, or None for an error of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, CycloptsError):
        return f"{' '.join(str(error).split())} See `probekit --help`."
    if _out_of_memory(error):
        return "there is not enough memory for this; give smaller sizes, smaller batches or fewer --workers."
    number = getattr(error, "errno", None) or _number_inside(error)
    if number in _USERS_OS_ERRORS:
        name = getattr(error, "filename", None)
        return f"cannot use {name}: {_USERS_OS_ERRORS[number]}." if name else f"{_USERS_OS_ERRORS[number]}."
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return str(error)
    return None


def _out_of_memory(error: BaseException) -> bool:
    """Whether NumPy, PyTorch or Python itself could not allocate memory."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Unable to allocate")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _number_inside(error: BaseException) -> int | None:
    """The system's error number inside a message: "(os error 28)" of safetensors, "errno = 28," of HDF5."""
    found = re.search(r"\(os error (\d+)\)|errno = (\d+),", str(error))
    return int(found[1] or found[2]) if found else None


def _say(sentence: str, code: int) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    who = "probekit" if speaks() else f"probekit, rank {os.environ['RANK']}"
    console.print(terminal(f"{who}: {sentence}"), style="red" if code != 130 else None)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if not speaks():
        return
    sys.stderr.write(f"warning: {visible(' '.join(str(message).split()))}\n")
