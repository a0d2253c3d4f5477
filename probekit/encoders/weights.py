"""Weights of the user's modules: read from a file without running code, put in place whole, and hashed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from igpt_model.hashing import hash_arrays
from probekit.runtime.errors import UserError, first_line

SHOWN = 4


def hash_weights(module: torch.nn.Module) -> str:
    """Hash of names, dtypes, shapes and values of parameters and buffers."""
    # NumPy has no bfloat16: its bits are hashed instead
    state = {
        name: value.detach().view(torch.int16) if value.dtype == torch.bfloat16 else value
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    return hash_arrays(state)


def read_state(path: str | Path, state_key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a torch file read with `weights_only`.

    Parameters
    ----------
    path : path
    state_key : str, optional
        Where the tensors lie inside nested dictionaries: "model", or "teacher.backbone" for two levels.

    Raises
    ------
    UserError
        There is no such file or key, or the file would need to run pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} is no weights file that can be read safely ({first_line(error)}); save a plain state_dict."
        ) from error
    remaining = state_key
    while remaining:
        # a key may itself hold dots: the longest one that is there wins
        parts = remaining.split(".")
        heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        head = next((h for h in heads if isinstance(state, Mapping) and h in state), None)
        if head is None:
            keys = ", ".join(list(map(str, state))[:8]) if isinstance(state, Mapping) else "no keys"
            raise UserError(f"{path} has no {state_key!r}; it holds {keys}: give another --state-key.")
        state, remaining = state[head], remaining[len(head) + 1 :]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        keys = ", ".join(list(map(str, state))[:8]) if isinstance(state, Mapping) else type(state).__name__
        raise UserError(f"{path} holds {keys} rather than tensors by name; say where they lie with --state-key.")
    return dict(state)


def load_weights(
    module: torch.nn.Module, path: str | Path, state_key: str | None = None, strip_prefix: str | None = None
) -> None:
    """Load a weights file into `module`; every key must have its place and every place its key.

    Parameters
    ----------
    strip_prefix : str, optional
        Only keys that begin with it are taken, and it is cut off ("module.", "backbone.").

    Raises
    ------
    UserError
        Missing or unexpected keys, or other shapes.
    """
    state = read_state(path, state_key)
    if strip_prefix:
        state = {key[len(strip_prefix) :]: v for key, v in state.items() if key.startswith(strip_prefix)}
        if not state:
            raise UserError(f"No key of {path} begins with {strip_prefix!r}; give another --strip-prefix.")
    own = module.state_dict()
    problems = [
        *_listed("missing", [key for key in own if key not in state]),
        *_listed("unexpected", [key for key in state if key not in own]),
        *_listed("of another shape", [key for key in own if key in state and state[key].shape != own[key].shape]),
    ]
    if problems:
        raise UserError(f"{path} does not fit the model: {'; '.join(problems)}; try --state-key or --strip-prefix.")
    module.load_state_dict(state)


def _listed(what: str, keys: list[str]) -> list[str]:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return [f"{what} {', '.join(keys[:SHOWN])}{more}"] if keys else []
