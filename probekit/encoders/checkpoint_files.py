"""Read the tensors of a weights file without running code that the file names.

PyTorch's restricted unpickler (`weights_only`) refuses every unknown global, even for plain containers stored with the
weights: argparse's Namespace, Lightning's AttributeDict, a callback's state, an enum. Here each is replaced by a
placeholder class: nothing of that name is imported or called, and its contents are kept as data.
"""

import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igpt_model.checked_json import open_regular, read_json
from igpt_model.whole_files import load_npz
from probekit.runtime.errors import UserError, explained, first_line
from probekit.runtime.memory import free_memory

# limit on unknown globals per file; pickled models name a few dozen
MOST_GLOBALS = 200


class Opaque:
    """Placeholder for an object of a class that is not imported."""

    named = ""
    contents: Any = None

    def __init__(self, *_: Any, **__: Any) -> None:
        self.contents = None

    def __setstate__(self, state: Any) -> None:
        self.contents = state


def _stand_in(name: str, made: Callable[[], Any] | None = None) -> type[Opaque]:
    """A placeholder class; with `made`, its objects are containers whose items the unpickler can set or append."""
    container = {} if made is None else {"__new__": lambda *_, **__: made()}
    return type(name, (Opaque,), {"named": name, "__qualname__": name, "__module__": __name__, **container})


def _load_torch(path: Path) -> Any:
    """Load the file, adding placeholders one by one: each failure names a global or a placeholder of the wrong type."""
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
                # PyTorch 2.9 does not check the type before setting an item
                as_dict = re.search(r"^'(\S+)' object does not support item assignment", said)
                if refused is not None:
                    name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
                    if name in stand_ins:
                        raise
                    stand_ins[name] = _stand_in(name)
                elif as_dict is not None and as_dict[1] in stand_ins:
                    stand_ins[as_dict[1]] = _stand_in(as_dict[1], OrderedDict)
                elif wrong is not None:
                    stand_ins[wrong[2]] = _stand_in(wrong[2], OrderedDict if wrong[1] == "SETITEM" else list)
                else:
                    raise
    raise ValueError(f"it names more than {MOST_GLOBALS} classes")


def _reason(error: Exception) -> str:
    """The reason why PyTorch refuses a file, without the surrounding paragraphs and terminal codes."""
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, a program"
    said = re.search(r"WeightsUnpickler error:\s+([^\n]+)", str(error))
    blocked = re.search(r"unsupported GLOBAL (\S+)", str(error))
    if blocked:
        return f"it refers to {blocked[1]}, which may run programs"
    if isinstance(error, EOFError | LookupError) or "Unsupported operand" in str(error):
        return "it was not written by torch.save, safetensors or numpy.savez"
    return said[1].strip(". ") if said else first_line(error)


def read_state(path: str | Path, state_key: str | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a torch file, a .safetensors file (or the .index.json of its shards), or an .npz file.

    `state_key` is their key in nested dictionaries: "model", or "teacher.backbone" for two levels.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        wrong = "is a folder; give a file" if path.is_dir() else "does not exist; check the path"
        raise UserError(f"The weights file {path} {wrong}.")
    try:
        state = _load(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a weights file that can be read safely ({_reason(error)}); save a plain state_dict."
        ) from error
    remaining = state_key
    while remaining:
        state = _by_name(state)
        # a key may contain dots: the longest match wins
        parts = remaining.split(".")
        heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        head = next((h for h in heads if isinstance(state, Mapping) and h in state), None)
        if head is None:
            raise UserError(f"{path} has no key {state_key!r}; give a different --state-key ({_content(state)}).")
        state, remaining = state[head], remaining[len(head) + 1 :]
    if isinstance(state, Opaque):
        raise UserError(
            f"{path} contains an object of the class {state.named}, whose code is not run here; save its state_dict()."
        )
    if not _is_state(state):
        inside = [key for _, key in sorted(_states(state), key=lambda found: -found[0])]
        advice = f"give --state-key {' or '.join(inside[:4])}" if inside else "give the file of a state_dict"
        raise UserError(f"{path} contains {_content(state)} rather than tensors by name; {advice}.")
    # counters and settings among the tensors are not weights
    with explained(f"{path} contains an array that is no tensor", "save it in float32 and native byte order"):
        return {str(key): torch.as_tensor(value) for key, value in state.items() if isinstance(value, ARRAYS)}


def _load(path: Path) -> Any:
    """Load a file by its type: safetensors, NumPy's .npz, an index of shards, or else PyTorch's."""
    with open_regular(path) as file:
        start = file.read(64)
    if start[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(path)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer: fetch the file itself with git lfs pull")
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is truncated: copy or download it again")
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
        if arrays:
            return load_npz(path, free_memory())
    if start.lstrip()[:1] == b"<":
        raise ValueError("it is a web page: download the file itself")
    if path.name.endswith(".index.json"):
        places = read_json(path, {"weight_map": dict})["weight_map"]
        if any(Path(str(shard)).name != shard for shard in places.values()):
            raise ValueError("it names files in other folders")
        shards = {shard: _load(path.parent / shard) for shard in sorted(set(places.values()))}
        if held := sorted({(key, shard) for shard in shards for key in shards[shard]} ^ set(places.items())):
            raise ValueError(f"it does not match its files for {held[0][0]}: copy all files of one version")
        return {key: shards[shard][key] for key, shard in places.items()}
    return _load_torch(path)


ARRAYS = (torch.Tensor, np.ndarray)


def _by_name(value: Any) -> Any:
    """A container (mapping with its attributes, list or placeholder with named contents) as a mapping with string
    keys; any other value as it is."""
    if isinstance(value, Opaque) and isinstance(value.contents, Mapping):
        value = value.contents
    elif isinstance(value, OrderedDict) and not all(isinstance(v, torch.Tensor) for v in value.values()):
        value = {**vars(value), **value}
    if isinstance(value, list | tuple):
        return {str(k): item for k, item in enumerate(value)}
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _is_state(value: Any) -> bool:
    """Whether a value is a mapping of mostly tensors, without nested containers."""
    if not isinstance(value, Mapping):
        return False
    others = [v for v in value.values() if not isinstance(v, ARRAYS)]
    plain = all(v is None or isinstance(v, int | float | str) for v in others)
    return plain and 2 * len(others) < len(value)


def _states(value: Any, above: str = "", depth: int = 5) -> list[tuple[int, str]]:
    """The sizes and full keys of the mappings of tensors inside a container."""
    value = _by_name(value)
    found: list[tuple[int, str]] = []
    for key, item in value.items() if isinstance(value, Mapping) and depth else ():
        inside = _by_name(item)
        name = f"{above}{key}"
        found += [(len(inside), name)] if _is_state(inside) else _states(inside, f"{name}.", depth - 1)
    return found


def _content(state: Any) -> str:
    if isinstance(state, Opaque):
        return f"an object of the class {state.named}"
    return (", ".join(list(map(str, state))[:8]) or "nothing") if isinstance(state, Mapping) else type(state).__name__
