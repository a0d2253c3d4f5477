"""Commands from functions: arguments and flags from the signature, their help from the numpydoc docstring.

Parameters without a default become arguments, the others flags; `out` is always a flag; `progress` is supplied here.
A public function's signature is read from its source, so that help and errors of usage need not wait for torch. A
function of `probekit.cli` with `**settings` also takes the flags of the public function named in its `INHERITS`.
"""

import __future__

import ast
import builtins
import inspect
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token

from igpt_model.ranges import Range
from probekit.cli import console
from probekit.cli.answer import present
from probekit.cli.console import progress
from probekit.cli.numbers import RANGES
from probekit.runtime.errors import UserError

SCALARS = (int, float, bool, Path, str)
EVERY_VERB = Group("Every command", sort_key=1000)
GROUPS = ("Model", "Data", "Optimisation", "Checkpoints and logs", "Hardware", "Watching", "Encoder", "Recipe")
COMMON = {
    "json": (("--json",), "Print the answer as JSON on stdout, and nothing else there."),
    "quiet": (("--quiet", "-q"), "No progress and no remarks on stderr."),
    "verbose": (("--verbose", "-v"), "Also print the decisions of the solver and the encoder."),
    "debug": (("--debug",), "Show the traceback of an error."),
}
CONFIG = (
    "YAML or JSON file with arguments and flags of this command, or the file that an earlier run wrote; the command "
    "line takes precedence."
)


@dataclass(frozen=True)
class Verb:
    """A command of the command line.

    Attributes
    ----------
    group, help : where and how `probekit --help` lists it
    function : "package.module:function"; by default the function of the same name in `probekit.cli`
    rename : parameter -> flag, "*" for an argument that takes several values, or "?" for one that may be absent
    unit : what its progress counts; "" if the function names its stages itself
    features : the parameter that is a feature file; it is opened, and the protocol checked, before PyTorch is imported
    needs : parameter -> the flag, or flag and value, without which it has no effect
    """

    group: Group
    help: str
    function: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    features: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)


class _Other(type):
    """The class of what the command line cannot express: `a.B`, `a[B]`, `a | B` and `a(B)` are understood."""

    def __getattr__(cls, name: str) -> "type":
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> "type":
        return cls

    def __call__(cls, *args: Any, **settings: Any) -> None:
        return None


class Other(metaclass=_Other):
    """A type that the command line cannot express."""


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Other)


@cache
def read_signature(target: str) -> tuple[inspect.Signature, str]:
    """Signature and docstring of "package.module:function", read from the source without importing the module.

    Annotations that are not plain types, `Path`, `Literal` or `Sequence` become `Other`; a default that is made by a
    call is None.
    """
    module, _, name = target.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"Module {module} does not exist; check the spelling.")
    tree = ast.parse(Path(spec.origin).read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise LookupError(f"{module} does not define {name}; check the spelling.")
    # Python itself reads the function's header, without body and decorators; unknown names become Other
    found[0].body, found[0].decorator_list = found[0].body[:1], []
    names = _Names(Path=Path, Literal=Literal, Sequence=Sequence)
    header = compile(ast.Module([found[0]], []), spec.origin, "exec", __future__.annotations.compiler_flag)
    exec(header, {}, names)
    signature = inspect.signature(names[name], globals={}, locals=names, eval_str=True)
    return signature, inspect.getdoc(names[name]) or ""


def command_type(hint: Any) -> Any:
    """The part of a type that a command line can express, or None; prefers a list to a single string."""
    if hint in SCALARS or hint is type(None) or get_origin(hint) is Literal:
        return hint
    if get_origin(hint) in (list, tuple, Sequence):
        items = [command_type(item) for item in get_args(hint) if item is not Ellipsis]
        if None in items or not items:
            return None
        fixed = get_origin(hint) is tuple and Ellipsis not in get_args(hint)
        shape: Any = tuple(items) if fixed else (items[0], ...)
        return tuple.__class_getitem__(shape)
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in map(command_type, get_args(hint)) if part not in (None, type(None))]
        several = [part for part in parts if get_origin(part) is tuple]
        # "a number or a list of them" is what stands first; "a name or a list of them" is the list; a path is more
        # than text
        first = parts[:1] if several and int in parts else several
        best = next(
            (part for part in (first or [Path, str, int, float, bool]) if part in parts), parts[0] if parts else None
        )
        optional = type(None) in get_args(hint)
        return None if best is None else best | None if optional else best
    return None


def described(doc: str) -> tuple[str, dict[str, str]]:
    """The text of a numpydoc docstring before its sections, and the help of each parameter."""
    from docstring_parser import parse
    from docstring_parser.common import DocstringStyle

    parsed = parse(doc, style=DocstringStyle.NUMPYDOC)
    prose = "\n\n".join(filter(None, [parsed.short_description, parsed.long_description]))
    helps = {}
    for one in parsed.params:
        for name in one.arg_name.split(","):
            helps[name.strip()] = " ".join((one.description or "").split())
    return prose, helps


def _flag(
    name: str, hint: Any, default: Any, help: str, spelled: Any = None, group: Any = None, allowed: Range | None = None
) -> inspect.Parameter:
    """A keyword parameter for cyclopts; lists take one or more values after the flag."""
    parts = (hint, *get_args(hint))
    several = any(get_origin(part) is tuple for part in parts)
    more: dict[str, Any] = {"consume_multiple": True} if several else {}
    if default in ((), None):
        more["show_default"] = False
    if group is not None:
        more["group"] = group
    if kinds := {inner for part in parts for inner in (part, *get_args(part))} & {int, float}:
        about = _dashed(name), kinds.pop(), allowed or RANGES.get(name) or Range()
        more |= {"converter": partial(_numbers, *about, several), "json_list": False}
    how = Parameter(name=spelled, help=help, negative_iterable=(), **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, how])


def _numbers(flag: str, kind: type, allowed: Range, several: bool, _: Any, tokens: Sequence[Token]) -> Any:
    """The number or numbers of a flag; cyclopts would round 2.6 for an integer flag."""
    values = [_number(token.value, kind) for token in tokens]
    for value, token in zip(values, tokens, strict=True):
        if value is None or value not in allowed:
            shown = token.value[:60] if value is not None else repr(token.value[:60])
            raise UserError(f"{flag} is {shown}; expected a {'whole ' * (kind is int)}number {allowed}.")
    return tuple(values) if several else values[0]


def _number(text: str, kind: type) -> int | float | None:
    with suppress(ValueError):
        return int(text) if kind is int else float(text)
    with suppress(ValueError):
        return int(value) if (value := float(text)).is_integer() else None
    return None


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@cache
def _group(name: str | None) -> Group | None:
    return None if name is None else Group(name, sort_key=GROUPS.index(name) + 1)


def _parameters(
    signature: Mapping[str, inspect.Parameter], helps: Mapping[str, str], rename: Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    """Arguments and flags of one function; frozen dataclasses become one flag per field, in the fields' groups."""
    kind = inspect.Parameter
    for name, one in signature.items():
        help, spelled = helps.get(name, ""), rename.get(name)
        if is_dataclass(one.default):
            hints = get_type_hints(type(one.default))
            for each in fields(one.default):
                about, group = each.metadata.get("help", ""), _group(each.metadata.get("group"))
                spelled, default = _dashed(each.name), getattr(one.default, each.name)
                yield _flag(each.name, hints[each.name], default, about, spelled, group, each.metadata.get("range"))
            continue
        hint = command_type(one.annotation)
        if one.kind is kind.VAR_KEYWORD or hint is None or name == "progress":
            continue
        if one.kind is kind.VAR_POSITIONAL or spelled == "*":
            several = kind.VAR_POSITIONAL
            item = get_args(hint)[0] if get_origin(hint) is tuple else hint
            yield kind(name, several, annotation=Annotated[item, Parameter(help=help, required=True)])
        elif spelled == "?" or (one.default is kind.empty and name != "out" and spelled is None):
            yield one.replace(kind=kind.POSITIONAL_ONLY, annotation=Annotated[hint, Parameter(help=help)])
        else:
            yield _flag(name, hint, one.default, help, spelled or _dashed(name))


def _opened(file: Path, given: Mapping[str, Any]) -> Any:
    """Open a feature file, so that an invalid file or protocol is reported before PyTorch is imported."""
    from probekit.features.store import FeatureStore
    from probekit.selection.protocol import resolve_protocol

    store = FeatureStore.open(file)
    if "protocol" in given:
        resolve_protocol(given["protocol"], given.get("Cs"))
    return store


def _refuse_idle(entry: Verb, given: Mapping[str, Any]) -> None:
    """Refuse a flag that has no effect without another one, which was not given."""
    for name, need in entry.needs.items():
        other, _, value = need[2:].replace("-", "_").partition(" ")
        if name in given and not (given.get(other) == value if value else given.get(other)):
            raise UserError(f"{_dashed(name)} changes nothing without {need}; add that, or leave {_dashed(name)} out.")


def _at_home(value: Any) -> Any:
    """Expand a ~ that the shell has not expanded, as in --out=~/x."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def command(verb: str, entry: Verb) -> Callable[..., None]:
    """The function that cyclopts registers: calls the command's function and prints the result."""
    module, _, name = entry.function.partition(":")
    parent = None
    if module.startswith("probekit.cli."):
        function = getattr(import_module(module), name)
        hints = get_type_hints(function)
        own = {n: p.replace(annotation=hints[n]) for n, p in inspect.signature(function).parameters.items()}
        prose, helps = described(inspect.getdoc(function) or "")
        parent = getattr(import_module(module), "INHERITS", {}).get(name)
    else:
        signature, doc = read_signature(entry.function)
        own = dict(signature.parameters)
        prose, helps = described(doc)
    rows = list(_parameters(own, helps, entry.rename))
    if parent:
        theirs, doc = read_signature(parent)
        taken = {row.name for row in rows} | set(own)
        more = {n: p for n, p in theirs.parameters.items() if n not in taken and p.default is not p.empty}
        rows += _parameters(more, described(doc)[1], {})
    common = [
        inspect.Parameter(
            flag,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[
                bool, Parameter(name=spelled, help=help, negative=(), group=EVERY_VERB, show_default=False)
            ],
        )
        for flag, (spelled, help) in COMMON.items()
    ]
    common.append(_flag("config_file", Path | None, None, CONFIG, "--config", EVERY_VERB))
    order: list[Any] = [
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
    ]
    rows = sorted([*rows, *common], key=lambda row: (order.index(row.kind), row.default is not row.empty))

    arguments = [row.name for row in rows if row.kind is inspect.Parameter.POSITIONAL_ONLY]
    several = next((row.name for row in rows if row.kind is inspect.Parameter.VAR_POSITIONAL), None)
    bundles: dict[str, Any] = {one.name: type(one.default) for one in own.values() if is_dataclass(one.default)}

    def call(*args: Any, **given: Any) -> None:
        args, given = tuple(map(_at_home, args)), {flag: _at_home(value) for flag, value in given.items()}
        console.settle(**{flag: given.pop(flag, False) for flag in COMMON})
        given.pop("config_file", None)
        given |= dict(zip(arguments, args, strict=False))
        _refuse_idle(entry, given)
        if several is not None:
            given[several] = list(args[len(arguments) :])
        for bundle, kind in bundles.items():
            names = {each.name for each in fields(kind)}
            given[bundle] = kind(**{flag: given.pop(flag) for flag in names & set(given)})
        if entry.features:
            given[entry.features] = _opened(given[entry.features], given)
        with progress(verb, entry.unit) if "progress" in own else nullcontext() as show:
            if show is not None:
                given["progress"] = show
            answer = getattr(import_module(module), name)(**given)
        present(answer)

    call.__signature__ = inspect.Signature(rows)  # type: ignore[attr-defined]
    call.__annotations__ = {row.name: row.annotation for row in rows}
    call.__name__ = call.__qualname__ = verb
    call.__doc__ = prose
    return call
