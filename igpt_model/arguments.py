"""Check the types of arguments against the annotations of a public function before it runs.

Only types are checked: a number, a string, a mapping, an instance of a class. The function itself checks ranges and
contents, and arguments annotated as `Any` or NumPy's `ArrayLike`.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from igpt_model.checked_json import short
from igpt_model.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")
_WORDS = {NoneType: "None", bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


class WrongType(UserError, TypeError):  # noqa: N818 (it names what happened, as StopIteration does)
    """An argument has the wrong type."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to raise `WrongType`, which names the argument and the expected type, for wrong types."""
    signature, where = inspect.signature(function), _called(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = signature.parameters
            near = [one for name in kwargs if name not in known for one in get_close_matches(name, known, n=1)]
            raise WrongType(f"{where}: {error}.{f' Did you mean {near[0]}?' if near else ''}") from None
        hints = _hints(function)  # at the first call, because annotations may refer to later definitions
        for name, value in given.arguments.items():
            kind, hint = signature.parameters[name].kind, hints.get(name, Any)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                given.arguments[name] = tuple(check_kind(name, one, hint, where) for one in value)
            elif kind is not inspect.Parameter.VAR_KEYWORD:
                given.arguments[name] = check_kind(name, value, hint, where)
        return function(*given.args, **given.kwargs)

    return call


def check_fields(settings: Any) -> None:
    """Check the fields of a dataclass in the same way; a list given for a tuple is converted to a tuple."""
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = check_kind(name, getattr(settings, name), hint, kind.__name__)
        object.__setattr__(settings, name, tuple(value) if get_origin(hint) is tuple else value)


def from_json(kind: type[D], values: Mapping[str, Any], what: str, whole: bool = False) -> D:
    """Build a dataclass, called `what` in messages, from a JSON object of its fields; it checks their values.

    Fields without a default are required; with `whole`, all fields are.
    """
    known = inspect.signature(kind).parameters
    needed = {name for name, field in known.items() if whole or field.default is field.empty}
    if wrong := sorted(needed - set(values)) or sorted(set(values) - set(known)):
        raise UserError(
            f"{what} {'contains' if wrong[0] in values else 'lacks'} {', '.join(wrong)}; this version knows "
            f"{', '.join(known)}."
        )
    return kind(**values)


def check_kind(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value, with NumPy scalars converted to Python ones; `WrongType` if it does not have the annotated type."""
    kind = type(value)
    if _takes_paths(hint):
        for one in value if isinstance(value, list | tuple) else [value]:
            _check_path(name, one, where)
    if kind in _plain_kinds(hint):
        return value
    scalar = kind.__module__ == "numpy" and kind.__name__ != "ndarray" and getattr(value, "ndim", 1) == 0
    if scalar and _fits(value.item(), hint):
        return value.item()
    if not _fits(value, hint):
        plain = value is None or isinstance(value, str | int | float | bytes)
        shown = short(value) if plain else f"of type {type(value).__name__}"
        raise WrongType(f"{name} is {shown}; {where} expected {_named(hint)}.")
    return _as_list(value, hint)


@functools.cache
def _takes_paths(hint: Any) -> bool:
    """Whether a path, or a list of paths, fits."""
    return any(Path in (option, *_options(next(iter(get_args(option)), None))) for option in _options(hint))


def _check_path(name: str, path: Any, where: str) -> None:
    """Refuse what no file can be called: the system's calls would end in errors of many kinds."""
    if not isinstance(path, str | PathLike):
        return
    try:
        parts = os.fsencode(path).split(b"/")
    except UnicodeEncodeError:
        parts = [b"\0"]
    if any(b"\0" in part or len(part) > 255 for part in parts) or sum(map(len, parts)) + len(parts) > 4096:
        raise UserError(f"{name} is {short(os.fspath(path))}, too long for a path or no text; {where} expected a path.")


def _as_list(value: Any, hint: Any) -> Any:
    """Convert a one-dimensional array, tensor or series to a list, unless the hint accepts arrays."""
    kinds = _list_kinds(hint)
    return value.tolist() if kinds and hasattr(value, "tolist") and not isinstance(value, kinds) else value


@functools.cache
def _list_kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a hint allows, if lists are among them and arrays are not."""
    options = _options(hint)
    named = (get_origin(option) or option for option in options)
    kinds = tuple(kind for kind in named if isinstance(kind, type) and not getattr(kind, "_is_protocol", False))
    lists = any(issubclass(kind, Iterable) and not issubclass(kind, str | Mapping) for kind in kinds)
    return kinds if lists and not _is_array_like(options) else ()


def plain_array(value: Any, what: str) -> "np.ndarray":
    """A dense array of numbers; otherwise a `UserError` that names it."""
    import numpy as np  # not needed by commands that only read records

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        kind = "nested" if value.is_nested else "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
        if value.is_quantized or value.is_complex() or kind != "strided":
            kind = "quantized" if value.is_quantized else "complex" if value.is_complex() else kind
            raise UserError(f"A {kind} tensor was given as {what}; expected a dense tensor of real numbers.")
        # NumPy has no bfloat16
        value = value.detach().float() if value.is_floating_point() else value.detach()
        return value.cpu().resolve_neg().numpy()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise UserError(
            f"A masked array is given as {what}, but every value is needed: fill or leave out what is masked."
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(f"The value given as {what} is not an array ({first_line(error)}).") from None
    if array.dtype.kind not in "fiub":
        hint = "; np.unique(values, return_inverse=True)[1] numbers them" if array.dtype.kind in "US" else ""
        raise UserError(f"An array of dtype {array.dtype} was given as {what}, but numbers were expected{hint}.")
    # PyTorch has neither long doubles nor the other byte order
    return array.astype(np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("="), copy=False)


def _called(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__").removesuffix(".__call__")


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    """The annotations; names known only to type checkers accept any value."""
    space = dict(getattr(of, "__globals__", None) or vars(inspect.getmodule(of)))
    found = {}
    for name, hint in inspect.get_annotations(of).items():
        if name == "return":
            continue
        while name not in found:
            try:
                found[name] = get_type_hints(SimpleNamespace(__annotations__={name: hint}), space)[name]
            except NameError as error:
                space[error.name] = Any
    return found


@functools.cache
def _plain_kinds(hint: Any) -> frozenset[Any]:
    """The plain types that a hint allows; most values have one of them and need no further check."""
    return frozenset(_options(hint)) & _WORDS.keys()


def _options(hint: Any) -> tuple[Any, ...]:
    """The parts of a union, or the one hint."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_array_like(options: tuple[Any, ...]) -> bool:
    """Whether a union is NumPy's `ArrayLike`, given its parts."""
    return any(str(getattr(option, "__module__", "")).startswith("numpy._typing") for option in options)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _is_array_like(inner) or any(_fits(value, option) for option in inner)
    if origin is Literal:
        return isinstance(value, tuple({type(option) for option in inner}))
    kind = origin or hint
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if not isinstance(kind, type) or kind is Any:
        return True  # a type variable or an unknown class
    if kind is Callable:
        return callable(value)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items() if inner
        )
    if kind is not str and issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return _is_list(value, kind, inner)
    if getattr(kind, "_is_protocol", False):
        members = {*vars(kind), *inspect.get_annotations(kind)}
        return all(hasattr(value, member) for member in members if not member.startswith("_"))
    return isinstance(value, kind)


def _is_list(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a value is accepted as a sequence: a list for a tuple, an array for both, but never a string."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        return False
    if not isinstance(value, Sized) or (issubclass(kind, Sequence) and not hasattr(value, "__getitem__")):
        return not issubclass(kind, Sized)
    if str(getattr(value, "dtype", "object")) != "object":  # all values of an array have the same type
        array: Any = value
        try:
            value = array[: len(inner) or 1].tolist()
        except RuntimeError:  # a meta tensor
            return False
        except AttributeError:
            value = []
    if kind is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(item, inner[0]) for item in value if inner)


def _named(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return "an array" if _is_array_like(inner) else " or ".join(dict.fromkeys(_named(option) for option in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    kind = origin or hint
    if kind in _WORDS:
        return _WORDS[kind]
    if kind in (Path, PathLike):
        return "a path"
    if kind is Callable:
        return "a function"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping" + (f" from {_named(inner[0])} to {_named(inner[1])}" if inner else "")
    if isinstance(kind, type) and issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return "a list" + (f" of {_several(_named(inner[0]))}" if inner else "")
    name = getattr(kind, "__name__", str(kind))
    return "anything" if kind is Any else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _several(words: str) -> str:
    """The plural of words of `_named`: "a number or a text" is "numbers or texts"."""
    each = [word.partition(" ")[2] if word.startswith(("a ", "an ")) else word for word in words.split(" or ")]
    return " or ".join(f"{word}s" if word.removeprefix("whole ").isalpha() else word for word in each)
