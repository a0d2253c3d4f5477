"""Read the tensors of a weights file without running code that the file names.

PyTorch's restricted unpickler (`weights_only`) refuses every global that it does not know, also where it is a plain
container beside the weights: argparse's Namespace, Lightning's AttributeDict, a callback's state, an enum. Here a
stand-in takes the place of each: nothing of that name is imported or called, what it holds is kept as data.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from probekit.runtime.errors import UserError, first_line

# globals that one file may name before it is given up: whole pickled models name a few dozen
MOST_GLOBALS = 200


class Opaque:
    """Stands for an object of a class that is not imported."""

    named = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.contents: Any = None

    def __setstate__(self, state: Any) -> None:
        self.contents = state


class OpaqueDict(Opaque):
    """Made as an OrderedDict, whose items and attributes the unpickler may set."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class OpaqueList(Opaque):
    """Made as a list, to which the unpickler may append."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def _stand_in(name: str, kind: type[Opaque] = Opaque) -> type[Opaque]:
    return type(name, (kind,), {"named": name, "__qualname__": name, "__module__": __name__})


def _load_torch(path: Path) -> Any:
    """The content, with stand-ins found one by one: each failure names the global, or the stand-in that was no dict."""
    stand_ins: dict[str, type[Opaque]] = {}
    for _ in range(2 * MOST_GLOBALS):
        with torch.serialization.safe_globals([(kind, name) for name, kind in stand_ins.items()]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                said = str(error)
                refused = re.search(r"Unsupported global: GLOBAL (\S+) was not", said)
                wrong = re.search(
                    rf"Can only (SETITEM|append|extend)\w*.* got <class '{re.escape(__name__)}\.(.+?)'>", said
                )
                if refused is not None:
                    name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
                    if name in stand_ins:
                        raise
                    stand_ins[name] = _stand_in(name)
                elif wrong is not None:
                    stand_ins[wrong[2]] = _stand_in(wrong[2], OpaqueDict if wrong[1] == "SETITEM" else OpaqueList)
                else:
                    raise
    raise ValueError(f"it names more than {MOST_GLOBALS} classes")


def _reason(error: Exception) -> str:
    """What PyTorch says of a file that it refuses, without the paragraphs and terminal codes round it."""
    said = re.search(r"WeightsUnpickler error:\s+([^\n]+)", str(error))
    blocked = re.search(r"unsupported GLOBAL (\S+)", str(error))
    if blocked:
        return f"it names {blocked[1]}, which may run programs"
    return said[1].strip(". ") if said else first_line(error)


def _named_content(state: Any) -> Any:
    """Items and attributes of what a stand-in's object held, where they are by name."""
    if isinstance(state, Opaque):
        return state.contents if isinstance(state.contents, Mapping) else state
    if isinstance(state, OrderedDict) and not all(isinstance(v, torch.Tensor) for v in state.values()):
        return {**vars(state), **state}
    return state


def read_state(path: str | Path, state_key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a torch file.

    Parameters
    ----------
    path : path
    state_key : str, optional
        The tensors' key inside nested dictionaries: "model", or "teacher.backbone" for two levels.

    Raises
    ------
    UserError
        There is no such file or key, or what is there are no tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = _load_torch(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a weights file that can be read safely ({_reason(error)}); save a plain state_dict."
        ) from error
    remaining = state_key
    while remaining:
        state = _named_content(state)
        # a key may itself hold dots: the longest one that is there wins
        parts = remaining.split(".")
        heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        head = next((h for h in heads if isinstance(state, Mapping) and h in state), None)
        if head is None:
            raise UserError(f"{path} has no {state_key!r}; it contains {_content(state)}: give another --state-key.")
        state, remaining = state[head], remaining[len(head) + 1 :]
    if isinstance(state, Opaque):
        raise UserError(
            f"{path} contains an object of the class {state.named}, whose code is not run here; save its state_dict()."
        )
    if not _is_state(state):
        inside = [key for key, value in state.items() if _is_state(value)] if isinstance(state, Mapping) else []
        advice = f"take --state-key {inside[0]}" if inside else "give the key that holds them with --state-key"
        raise UserError(f"{path} contains {_content(state)} rather than tensors by name; {advice}.")
    return {str(key): value for key, value in state.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _content(state: Any) -> str:
    if isinstance(state, Opaque):
        return f"an object of the class {state.named}"
    return (", ".join(list(map(str, state))[:8]) or "nothing") if isinstance(state, Mapping) else type(state).__name__
