"""Load weights files into the user's modules, hash weights, and list what a file lacks.

A file may lack keys of the model (such as the classifier) if no chosen layer depends on them, which is tested by
running the model (`row_checks.settle_unloaded`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from igpt_model.arguments import checked
from igpt_model.devices import is_plain
from igpt_model.hashing import hash_arrays
from probekit.encoders.checkpoint_files import read_state
from probekit.runtime.errors import UserError, some

SHOWN = 4
# levels that wrappers add to the names of parameters: torch.compile, FSDP, activation checkpointing
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# parts of parameter names that indicate a modification of another weight
ADAPTERS = re.compile(
    r"base_layer|adapter|prompt_embeddings|parametrizations|weight_(g|v|u|orig|mask|scale\w*|packed)$|"
    # methods of peft
    r"lora_|ia3_|(?<![^.])(hada|lokr|oft|boft|vera_lambda|vblora|randlora|fourierft|shira|c3a|ln_tuning)_|"
    # quantisation: GPTQ, AWQ, bitsandbytes
    r"qweight|zero_point|(?<![^.])(qzeros|g_idx|SCB)$|weight\.(absmax|quant_map|quant_state|nested_)"
)
COUNTER = "num_batches_tracked"
"""BatchNorm's counter, unused in evaluation; files from before PyTorch 0.4.1 lack it, which torch accepts."""


@dataclass(frozen=True)
class Loaded:
    """What was not loaded from a weights file: keys of the model that it lacks or has in a different shape (missing),
    keys of the file that were ignored, lack the prefix or belong to another head (unused), and advice if a layer needs
    a missing one."""

    source: str = ""
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    advice: str = "give a complete checkpoint"

    def to_dict(self) -> dict[str, Any]:
        """For the provenance; empty if nothing was left out."""
        kept = {"weights_missing": list(self.missing), "weights_unused": list(self.unused)}
        return {key: value for key, value in kept.items() if value}


def hash_weights(module: torch.nn.Module) -> str:
    """Hash of names, dtypes, shapes and values of parameters and buffers."""
    # NumPy has no bfloat16: its bits are hashed instead
    state = {
        WRAPPERS.sub("", name): value.detach().view(torch.int16) if value.dtype == torch.bfloat16 else value
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    return hash_arrays(state)


def load_weights_of(module: torch.nn.Module, options: dict[str, Any]) -> Loaded | None:
    """Load the weights file named in an encoder's options, and remove these options; None if there is no file."""
    asked = {key: options.pop(key) for key in ("weights", "state_key", "strip_prefix", "ignore") if key in options}
    path = asked.pop("weights", None)
    given = {key: value for key, value in asked.items() if value}
    if path is None and given:
        raise UserError(f"{' and '.join(given)} require a weights file, but none was given; add weights= (--weights).")
    return None if path is None else load_weights(module, path, **given)


@checked
def load_weights(
    module: torch.nn.Module,
    path: str | Path,
    state_key: str | None = None,
    strip_prefix: str | None = None,
    ignore: str | Sequence[str] = (),
) -> Loaded:
    """Load a weights file into `module`: the keys that begin with `strip_prefix` (which is removed) and match none of
    the globs `ignore`.

    Missing keys are returned; the caller must refuse them if a layer uses them. Raises `UserError` if the file has
    unexpected keys, or none of the model's.
    """
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    content = read_state(path, state_key)
    prefix = WRAPPERS.sub("", strip_prefix or "")
    state = {WRAPPERS.sub("", key): value for key, value in content.items()}
    if len(state) < len(content):
        raise UserError(f"{path} has the same tensors with and without the prefix of a wrapper; keep only one of them.")
    left_out = [key for key in state if not key.startswith(prefix)]
    state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not state:
        raise UserError(f"No key of {path} begins with {strip_prefix!r}; give another --strip-prefix.")
    names = {name: WRAPPERS.sub("", name) for name in module.state_dict()}
    own = {names[name]: value for name, value in module.state_dict().items()}
    skipped = {key for key in state if any(fnmatchcase(key, glob) for glob in ignored)}
    state = {key: value for key, value in state.items() if key not in skipped}
    fits = {key for key in own if key in state and _fits(state[key], own[key])}
    misshapen = [key for key in own if key in state and key not in fits]
    missing = [key for key in own if key not in fits and key.rpartition(".")[2] != COUNTER]
    unexpected = [key for key in state if key not in own]
    # another head in place of the model's: MoCo's fc.0 and fc.2 instead of fc
    replaced = {key for key in unexpected if _stands_for_missing(key, set(own), set(missing))}
    strange = [key for key in unexpected if key not in replaced or ADAPTERS.search(key)]
    if strange or not fits:
        kinds = {
            "missing": [key for key in missing if key not in misshapen],
            "unexpected": strange,
            "of a different shape or type": misshapen,
        }
        problems = [f"{what} {some(keys, SHOWN)}" for what, keys in kinds.items() if keys]
        advice = _prefix_advice(state, list(own)) or _ignore_advice(strange if fits else [], list(own))
        raise UserError(f"{path} does not fit the model: {'; '.join(problems)}; {advice}.")
    module.load_state_dict({name: state[plain] for name, plain in names.items() if plain in fits}, strict=False)
    # a tied parameter has two names, of which files may contain only one
    held = {own[key].data_ptr() for key in fits}
    missing = [key for key in missing if own[key].data_ptr() not in held]
    shapes = f"; of a different shape or type: {', '.join(misshapen[:SHOWN])}" if misshapen else ""
    advice = _prefix_advice(state, list(own)) or f"give a complete checkpoint, or earlier layers{shapes}"
    return Loaded(str(path), tuple(missing), tuple(sorted({*left_out, *skipped, *replaced})), advice)


def _fits(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a file's tensor fits a parameter: dense, of its shape, and floating-point if it is."""
    return is_plain(value) and value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _stands_for_missing(key: str, own: set[str], missing: set[str]) -> bool:
    """Whether an unexpected key is in a submodule whose keys are all missing in the file."""
    levels = key.split(".")
    for depth in range(len(levels) - 1, 0, -1):
        prefix = ".".join(levels[:depth]) + "."
        inside = {name for name in own if name.startswith(prefix)}
        if inside:
            return inside <= missing
    return False


def _prefix_advice(content: Mapping[str, Any], own: Sequence[str]) -> str | None:
    """Advice with the --strip-prefix that would make most of the model's keys fit, or None."""
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


def _ignore_advice(strange: Sequence[str], own: Sequence[str]) -> str:
    if not strange:
        return "try --state-key or --strip-prefix"
    if changed := [key for key in strange if ADAPTERS.search(key)]:
        return (
            f"{changed[0]} modifies other weights (LoRA or another adapter, a parametrisation, pruning, quantisation): "
            "merge it into the weights first, for example with merge_and_unload() or remove_parametrizations()"
        )
    globs = list(dict.fromkeys(_glob_beside(key, own) for key in strange))
    return "if these are not in a layer you need (a projection head), leave them out with --ignore " + " ".join(
        f"'{glob}'" for glob in globs[:SHOWN]
    )


def _glob_beside(key: str, own: Sequence[str]) -> str:
    """The widest glob for a key of a file, with any numbers in it, that matches none of the model's keys."""
    levels = ["*" if level.isdigit() else level for level in key.split(".")]
    for depth in range(1, len(levels)):
        glob = ".".join([*levels[:depth], "*"])
        if not any(fnmatchcase(name, glob) for name in own):
            return glob
    return ".".join(levels)
