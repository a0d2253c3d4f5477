"""`probekit`: run a command, and report an error as one sentence and an exit code.

Exit codes: 0 done; 2 invalid input; 1 an error in probekit; 130 interrupted, with finished work saved.
"""

import errno
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

from cyclopts import App, CycloptsError, Group

from probekit import __version__
from probekit.cli import console
from probekit.cli.register import Verb, command
from probekit.cli.usage import prepared, usage_sentence
from probekit.runtime.errors import UserError, did_you_mean, shortened
from probekit.runtime.escape import visible
from probekit.runtime.stderr import losable

MAKE = Group.create_ordered("One command")
MODEL = Group.create_ordered("Models")
MEASURE = Group.create_ordered("Features and probes")
SHOW = Group.create_ordered("Results")
LOOK = Group.create_ordered("Before and after")

# Commands are listed with their line of help, so that `probekit --help` does not import torch.
_VERBS: dict[str, Verb] = {
    "demo": Verb(MAKE, "From nothing to a depth curve: minutes on two CPU cores."),
    "study": Verb(
        MAKE,
        "Encoders on data sets: extract, sweep, concatenate, baselines, report.",
        rename={"encoders": "*", "on": "--on", "tests": "--test"},
    ),
    "train": Verb(
        MODEL,
        "Train an iGPT on a data set and write a run folder.",
        needs={"probe_images": "--probe-every", "sample_images": "--sample-every"},
    ),
    "finetune": Verb(MODEL, "Train a pre-trained iGPT with a linear head on labelled images."),
    "sample": Verb(
        MODEL, "Draw images from a trained iGPT.", needs=dict.fromkeys(("each", "keep", "root"), "--complete")
    ),
    "convert": Verb(MODEL, "Convert weights from and to Hugging Face's format."),
    "extract": Verb(MEASURE, "Write every layer's pooled features of a data set to one file.", unit="images"),
    "sweep": Verb(
        MEASURE,
        "Probe every layer of a feature file over a path of penalties.",
        "probekit.evaluate.sweep:sweep",
        unit="fits",
        features="features",
    ),
    "calibrate": Verb(
        MEASURE,
        "Calibration of a sweep's probes, with a temperature from held-out rows.",
        "probekit.evaluate.calibrate:calibrate",
        {"results_dir": "--out"},
        unit="probes",
        features="store",
    ),
    "geometry": Verb(
        MEASURE,
        "Effective rank, intrinsic dimension and CKA of every layer.",
        "probekit.evaluate.layer_geometry:geometry",
        unit="layers",
        features="store",
    ),
    "concat": Verb(
        MEASURE,
        "Probe concatenated layers.",
        "probekit.evaluate.concat:concat",
        unit="sets of layers",
        features="features",
    ),
    "import": Verb(MEASURE, "Make a feature file from arrays.", "probekit.features.importing:import_features"),
    "predict": Verb(MEASURE, "Classify images with a stored probe."),
    "report": Verb(
        SHOW, "Write depth curves, tables and an HTML page.", rename={"results": "*"}, needs={"device": "--pictures"}
    ),
    "compare": Verb(SHOW, "Compare two results on the test rows they share.", "probekit.results.results:compare"),
    "plot": Verb(SHOW, "Draw one figure to a file.", rename={"results": "*"}, needs={"series": "--kind path"}),
    "table": Verb(SHOW, "Write one table to a file.", rename={"results": "*"}),
    "plan": Verb(LOOK, "Estimate time, memory and disk of train, extract and sweep.", needs={"root": "--dataset"}),
    "datasets": Verb(LOOK, "List the data sets known by name, or fetch one.", rename={"action": "?", "name": "?"}),
    "compress": Verb(LOOK, "Rewrite a feature file in compressed chunks.", "probekit.features.compress:compress"),
    "verify": Verb(
        LOOK,
        "Check a feature file for damage and doubtful contents.",
        needs={**dict.fromkeys(("layer", "picture", "threshold"), "--near-duplicates"), "root": "--data"},
    ),
    "inspect": Verb(LOOK, "Show the contents of a feature file, layer by layer."),
}
# a command with its own output has a module of its name
VERBS = {verb: replace(one, function=one.function or f"probekit.cli.{verb}:{verb}") for verb, one in _VERBS.items()}

app = App(
    name="probekit",
    version=f"probekit {__version__}",
    suppress_keyboard_interrupt=False,
    help="From images to the depth curve of any visual encoder, with certified linear probes.",
    help_epilogue=(
        "`probekit COMMAND --help` describes a command. Run the same command again to resume it after an interruption. "
        "`probekit --install-completion` sets up completion for bash, zsh and fish."
    ),
)
app.register_install_completion_command()


def register(verb: str, entry: Verb) -> None:
    """Register a command; the module of its function is imported when the command is used."""
    VERBS[verb] = entry
    app.command(f"probekit.cli.main:{_ATTRIBUTE}{verb}", name=verb, help=entry.help, group=entry.group)


_ATTRIBUTE = "verb_"


def __getattr__(name: str) -> Callable[..., None]:
    verb = name.removeprefix(_ATTRIBUTE)
    if not name.startswith(_ATTRIBUTE) or verb not in VERBS:
        raise AttributeError(name)
    return command(verb, VERBS[verb])


for _verb, _entry in list(VERBS.items()):
    register(_verb, _entry)

# what a user can correct: the folder, permissions, the disk
_USERS_OS_ERRORS = {
    errno.ENOENT: "it does not exist; check the path",
    errno.EACCES: "permission denied; give another path, or change the permissions",
    errno.EPERM: "permission denied; give another path, or change the permissions",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.ENOTDIR: "a part of that path is a file, not a folder; give another path",
    errno.EISDIR: "it is a folder, not a file; give a file",
    errno.EFBIG: "the file exceeds this system's limit or `ulimit -f`; raise it and run the same command again",
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
    errno.ENOLCK: "this file system has no locks (flock); give a folder on another one",
    errno.ENOSYS: "this file system has no locks (flock); give a folder on another one",
    errno.ENOMEM: "there is not enough memory; give smaller sizes or fewer --workers",
    errno.EEXIST: "it exists already; give another name",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}


def main(argv: Sequence[str] | None = None, run: Callable[[list[str]], object] | None = None) -> int:
    """Run the command line `argv` (by default the process's) and return the exit code; 141 if stdout was closed.

    `run` is called with the words in place of the verb.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _bound_terminal_size()
    debug = "--debug" in words
    warnings.showwarning = _show_warning
    console.settle(quiet=bool({"-q", "--quiet"} & set(words)))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal that is not UTF-8 must not stop a result from being shown
            stream.reconfigure(errors="backslashreplace")
    before, threading.excepthook = threading.excepthook, _thread_error
    try:
        with _interrupts() as interrupts:
            return _written(_run(words, run or dispatch, debug, interrupts))
    finally:
        threading.excepthook = before


def _open_closed_streams() -> None:
    """Open what the shell has closed (`>&-`): the next file would get its number, and with it all that is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _bound_terminal_size() -> None:
    """Limit the output width to 60 to 1000 columns: rich uses any value of COLUMNS and LINES, even 0.

    In less than 50 columns the help abbreviates names of flags.
    """
    columns = shutil.get_terminal_size().columns
    if "COLUMNS" in os.environ or columns < 60:
        os.environ["COLUMNS"] = str(min(max(columns, 60), 1000))
    if not re.fullmatch("[0-9]{1,4}", os.environ.get("LINES", "24")):
        del os.environ["LINES"]


def _written(code: int) -> int:
    """Flush the output and return the exit code; what cannot be written (`>/dev/full`, `| head`) is discarded."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                code = code or 2
    return code


# an exception in these would leave a lock of a queue or future locked, so that its threads wait forever
_TAKING_LOCKS = {
    getattr(threading.Condition, name).__code__
    for name in ("__enter__", "__exit__", "_acquire_restore", "_release_save")
}


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the SIGINTs received, since a library may convert the KeyboardInterrupt to another exception."""
    received: list[int] = []
    before = sys.unraisablehook

    def send() -> None:
        if signal.getsignal(signal.SIGINT) is note:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def send_later() -> None:
        threading.Timer(0.02, send).start()

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if frame is not None and frame.f_code in _TAKING_LOCKS:
            send_later()
            return
        signal.default_int_handler(number, frame)

    def ignored(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):  # in a destructor or callback, where it ends
            send_later()
        else:
            before(unraisable)

    if (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield received
        return
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = ignored
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = before


def _run(words: list[str], run: Callable[[list[str]], object], debug: bool, interrupts: list[int]) -> int:
    """Run the command, report its errors, and return the exit code."""
    try:
        run(words)
    except KeyboardInterrupt:
        return _report(_interrupted(), 130)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # the reader of stdout has exited (`| head`)
    except SystemExit as error:  # of a model's or a data set's code, which may not say that all went well
        if debug:
            traceback.print_exc()
        code = shortened(repr(error.code))
        return _report(f"imported code called sys.exit({code}); remove that call (--debug shows it).", 2)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # frees the memory needed to report the error
        if interrupts:
            return _report(_interrupted(), 130)
        if isinstance(error, CycloptsError):
            if not isinstance(error.__cause__, UserError):
                return _report(usage_sentence(error, app, words), 2)
            error = error.__cause__  # our own, of a number outside its range
        sentence = users_sentence(error)
        if sentence is not None:
            return _report(with_flags(sentence, words), 2)
        if not debug:
            traceback.print_exc()
        return _report(
            f"this is an error in probekit itself ({type(error).__name__}); please report it with the lines above.", 1
        )
    return 0


def dispatch(words: list[str]) -> None:
    """Find the command and run it."""
    if words[:1] in (["help"], ["version"]):
        words = [*words[1:], f"--{words[0]}"]
    if words and words[0] not in ("--help", "-h", "--version", "--install-completion"):
        if words[0].startswith("-"):
            hint = (
                did_you_mean(words[0], ["--help", "--version"]) or " Write the command first: probekit COMMAND [FLAGS]."
            )
            raise UserError(f"no command was given before {words[0]}.{hint}")
        if words[0] not in VERBS:
            hint = did_you_mean(words[0], VERBS) or f" The commands are {', '.join(VERBS)}."
            raise UserError(f"there is no command {words[0]!r}.{hint}")
        try:
            os.getcwd()  # some libraries exit the process if there is none
        except FileNotFoundError:
            raise UserError("the current folder no longer exists; change to another one.") from None
        if {"--help", "-h"} & set(words):
            whole_help(words[0])
        else:
            words = prepared(app, words)
    for before, word in zip(["", *words], words, strict=False):
        flag, value = word.split("=", 1) if word.startswith("--") and "=" in word else (before, word)
        # an empty title is a figure without one
        if value in ("", ".h5") and flag != "--title":
            what = f"an ending alone, {value!r}" if value else "empty"
            raise UserError(f"an argument is {what} (an unset variable of the shell?); give a value, or leave it out.")
    if "\0" in "".join(words):
        raise UserError("an argument contains a NUL character, which is not allowed in paths or names; remove it.")
    for name in ("RANK", "SOURCE_DATE_EPOCH"):  # any RANK but 0 prints nothing; matplotlib reads the other
        if not re.fullmatch("0|[1-9][0-9]{0,17}", value := os.environ.get(name, "0")):
            raise UserError(
                f"the environment variable {name} is {value!r}; expected a whole number; correct or unset it."
            )
    if any(re.search(r"(^|=|:)(hf|timm|hf-data):", word) for word in words):
        _use_the_cache_where_there_is_no_network()
    with console.only_rank0_prints():
        chosen, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        chosen(*given.args, **given.kwargs)


def _use_the_cache_where_there_is_no_network() -> None:
    """Put the hub's libraries into offline mode where its name does not resolve: they would retry for a minute."""
    import socket

    if any(name.lower().endswith("_proxy") or name in ("HF_ENDPOINT", "HF_HUB_OFFLINE") for name in os.environ):
        return
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        console.note("no network: models and data sets of the Hugging Face hub are read from the cache", "yellow")


def whole_help(verb: str) -> None:
    """Let `probekit VERB --help` show the whole docstring, not only its line in `probekit --help`."""
    command = app[verb]
    command.help = (command.default_command.__doc__ if command.default_command else None) or command.help
    command.help_epilogue = ""


def _interrupted() -> str:
    if not console.reached():
        return "interrupted; run the same command again."
    return f"interrupted at {console.reached()}; finished work is saved, and the same command continues from there."


def users_sentence(error: BaseException) -> str | None:
    """One sentence for an error that the user can correct, or None for an error in probekit."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return f"a name holds bytes that are not UTF-8 ({error.object[:200]!r}); rename that file or folder."
    if _out_of_memory(error):
        return "there is not enough memory for this; give smaller sizes, smaller batches or fewer --workers."
    number = getattr(error, "errno", None) or _number_inside(error)
    if number in _USERS_OS_ERRORS:
        name = getattr(error, "filename", None)
        return f"cannot use {name}: {_USERS_OS_ERRORS[number]}." if name else f"{_USERS_OS_ERRORS[number]}."
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return str(error)
    return None


def with_flags(sentence: str, words: list[str]) -> str:
    """A message of the library with parameters replaced by flags: series_a becomes --series-a."""
    if not words or words[0] not in VERBS:
        return sentence
    names = {name for one in app[words[0]].assemble_argument_collection() for name in one.names}
    flags = {name[2:].replace("-", "_"): name for name in names if name.startswith("--")}
    # only unambiguous cases: "keep is 1; ..." and words with _ that are not in a path or quotes
    sentence = re.sub(r"^\w+(?= is )", lambda found: flags.get(found[0], found[0]), sentence)
    return re.sub(r"(?<![\w./'=-])\w+_\w+(?![\w/'(=-]|\.\w)", lambda found: flags.get(found[0], found[0]), sentence)


def _out_of_memory(error: BaseException) -> bool:
    """Whether NumPy, PyTorch or Python itself could not allocate memory."""
    words = ["can't allocate memory", "not enough memory", "out of memory", "Unable to allocate"]
    # a library that cannot be loaded, and oneDNN's message for that
    words += ["Cannot allocate memory", "failed to map segment", "could not create a primitive"]
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(word in str(error) for word in words)
    )


def _number_inside(error: BaseException) -> int | None:
    """The system's error number in a message: "(os error 28)" of safetensors, "errno = 28," of HDF5."""
    found = re.search(r"\(os error (\d+)\)|errno = (\d+),", str(error))
    return int(found[1] or found[2]) if found else None


def _report(sentence: str, code: int) -> int:
    who = "probekit" if console.is_rank0() else f"probekit, rank {os.environ['RANK']}"
    text = visible(f"{who}: {shortened(sentence)}")
    with suppress(OSError):
        try:
            console.rich_console(stderr=True, soft_wrap=True).print(text, style="red" if code != 130 else None)
        except MemoryError:
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    return code


def _thread_error(about: threading.ExceptHookArgs) -> None:
    """An error in a library's thread (TensorBoard's writer on a full disk): one line if the user can correct it."""
    sentence = users_sentence(about.exc_value) if about.exc_value is not None else None
    if sentence is None:
        threading.__excepthook__(about)
    else:
        _warn(sentence)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if console.is_rank0():
        _warn(" ".join(str(message).split()))


def _warn(words: str) -> None:
    with losable():
        sys.stderr.write(f"warning: {visible(words)}\n")
