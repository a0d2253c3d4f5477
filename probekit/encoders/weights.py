"""Weights of the user's modules: put in place, hashed, and what a file leaves out, listed.

A key of the model that the file lacks (a classifier, of a checkpoint that has none) may stay out where no chosen layer
depends on it, which the encoder finds out by running (`row_checks.settle_unloaded`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from igpt_model.hashing import hash_arrays
from probekit.encoders.checkpoint_files import read_state
from probekit.runtime.errors import UserError

SHOWN = 4
COUNTER = "num_batches_tracked"
"""A counter of BatchNorm that evaluation never reads; files from before PyTorch 0.4.1 lack it, as torch accepts."""


@dataclass(frozen=True)
class Loaded:
    """What a weights file did not bring.

    Parameters
    ----------
    source : str
        The file or model, for messages.
    missing : tuple of str
        Keys of the model that the file lacks, or holds in another shape.
    unused : tuple of str
        Keys of the file that the model has no place for: ignored by the user, or of another head than the model's.
    advice : str
        What to do where a layer depends on a missing key.
    """

    source: str = ""
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    advice: str = "give a complete checkpoint"

    def to_dict(self) -> dict[str, Any]:
        """For the provenance; empty where nothing was left out."""
        kept = {"weights_missing": list(self.missing), "weights_unused": list(self.unused)}
        return {key: value for key, value in kept.items() if value}


def hash_weights(module: torch.nn.Module) -> str:
    """Hash of names, dtypes, shapes and values of parameters and buffers."""
    # NumPy has no bfloat16: its bits are hashed instead
    state = {
        name.replace("_orig_mod.", ""): value.detach().view(torch.int16) if value.dtype == torch.bfloat16 else value
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    return hash_arrays(state)


def load_weights(
    module: torch.nn.Module,
    path: str | Path,
    state_key: str | None = None,
    strip_prefix: str | None = None,
    ignore: str | Sequence[str] = (),
) -> Loaded:
    """Load a weights file into `module`.

    Parameters
    ----------
    module : torch.nn.Module
    path, state_key : as `read_state` takes them
    strip_prefix : str, optional
        Only keys that begin with it are taken, and it is cut off ("module.", "backbone.").
    ignore : str or sequence of str
        Globs of keys of the file to leave out ("fc.*").

    Returns
    -------
    Loaded
        What is missing; whoever runs the module must refuse it if that is read.

    Raises
    ------
    UserError
        The file holds keys that the model has no place for, or none that it has.
    """
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    content = read_state(path, state_key)
    state = content
    if strip_prefix:
        state = {key[len(strip_prefix) :]: v for key, v in content.items() if key.startswith(strip_prefix)}
        if not state:
            raise UserError(f"No key of {path} begins with {strip_prefix!r}; give another --strip-prefix.")
    names = {name: name.replace("_orig_mod.", "") for name in module.state_dict()}
    own = {names[name]: value for name, value in module.state_dict().items()}
    left_out = [key for key in state if any(fnmatchcase(key, glob) for glob in ignored)]
    state = {key: value for key, value in state.items() if key not in left_out}
    fits = {key for key in own if key in state and state[key].shape == own[key].shape}
    misshapen = [key for key in own if key in state and key not in fits]
    missing = [key for key in own if key not in fits and key.rpartition(".")[2] != COUNTER]
    unexpected = [key for key in state if key not in own]
    # another head where the model's own is missing: MoCo's fc.0 and fc.2 instead of fc
    replaced = [key for key in unexpected if _stands_for_missing(key, set(own), set(missing))]
    strange = [key for key in unexpected if key not in replaced]
    if strange or not fits:
        problems = [
            *_listed("missing", [key for key in missing if key not in misshapen]),
            *_listed("unexpected", strange),
            *_listed("of another shape", misshapen),
        ]
        advice = _prefix_advice(state, list(own)) or _ignore_advice(strange if fits else [])
        raise UserError(f"{path} does not fit the model: {'; '.join(problems)}; {advice}.")
    module.load_state_dict({name: state[plain] for name, plain in names.items() if plain in fits}, strict=False)
    # a tied parameter goes by two names, of which files hold one
    held = {own[key].data_ptr() for key in fits}
    missing = [key for key in missing if own[key].data_ptr() not in held]
    shapes = f"; of another shape are {', '.join(misshapen[:SHOWN])}" if misshapen else ""
    advice = _prefix_advice(state, list(own)) or f"give a complete checkpoint, or earlier layers{shapes}"
    return Loaded(str(path), tuple(missing), tuple(sorted({*left_out, *replaced})), advice)


def _stands_for_missing(key: str, own: set[str], missing: set[str]) -> bool:
    """Whether an unexpected key is inside a submodule of which the file brings nothing else."""
    levels = key.split(".")
    for depth in range(len(levels) - 1, 0, -1):
        prefix = ".".join(levels[:depth]) + "."
        inside = {name for name in own if name.startswith(prefix)}
        if inside:
            return inside <= missing
    return False


def _prefix_advice(content: Mapping[str, Any], own: Sequence[str]) -> str | None:
    """Which --strip-prefix would make most of the model's keys fit, where one would."""
    names = set(own)
    prefixes: Counter[str] = Counter()
    for key in content:
        levels = key.split(".")
        for depth in range(1, len(levels)):
            if ".".join(levels[depth:]) in names:
                prefixes[".".join(levels[:depth]) + "."] += 1
    fitting = sum(key in names for key in content)
    for prefix, count in prefixes.most_common(1):
        if count > max(fitting, len(own) // 2):
            return f"try --strip-prefix {prefix!r}"
    return None


def _ignore_advice(strange: Sequence[str]) -> str:
    if not strange:
        return "try --state-key or --strip-prefix"
    tops = list(dict.fromkeys(key.partition(".")[0] + (".*" if "." in key else "") for key in strange))
    globs = " ".join(f"'{top}'" for top in tops[:SHOWN])
    return f"if these are of no layer you want (a projection head), leave them out with --ignore {globs}"


def _listed(what: str, keys: list[str]) -> list[str]:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return [f"{what} {', '.join(keys[:SHOWN])}{more}"] if keys else []
