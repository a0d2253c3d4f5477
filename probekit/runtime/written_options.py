"""Parse data sets and encoders given as text with options: NAME#option=value#option=value."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from probekit.runtime.errors import UserError


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and its options; an existing path is taken literally, whatever characters it contains."""
    name, *written = re.split(r"#(?=[\w-]+=)", text)
    for count in range(len(written), 0, -1):
        if _names_a_path(longer := "#".join([name, *written[:count]])):
            name, written = longer, written[count:]
            break
    pairs = [part.partition("=") for part in written]
    options = {key.replace("-", "_"): value for key, _, value in pairs}
    well_formed = all(key.isidentifier() and value for key, value in options.items()) and len(options) == len(pairs)
    if not well_formed or ("#" in name and not _names_a_path(name)):
        raise UserError(
            f"{text!r} is not an existing path, and its options cannot be parsed; write each once, as in "
            "NAME#option=value."
        )
    return name, options


def _names_a_path(text: str) -> bool:
    """Whether a path in the text exists: PATH, hf:PATH, tokens:igpt:PATH@STEP."""
    rests = [text, *(text[colon.end() :] for colon in re.finditer(":", text.partition("#")[0]))]
    paths = (path for rest in rests for path in (rest, re.sub("@[^@#]*$", "", rest)))
    return any(os.path.exists(os.path.expanduser(path)) for path in paths)


def _whole_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text):
        raise ValueError
    return int(text)


def _several(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: tuple(map(kind, text.split(",")))


_NUMBERS = ("resolution", "resize", "crop", "prefix_tokens", "seed", "split_seed", "fold")
_TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(_NUMBERS, (_whole_number, "32")),
    "batches": (_several(_whole_number), "1,2"),
    **dict.fromkeys(("mean", "std"), (lambda text: (_several(float) if "," in text else float)(text), "0.5")),
    **dict.fromkeys(
        ("norm", "masked", "verify", "skip_corrupt"),
        (lambda text: {"true": True, "false": False}[text.lower()], "false"),
    ),
    **dict.fromkeys(("layers", "ignore"), (_several(str), "0,2")),
}
"""Parser and example of each option that is not text."""


def read_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with those that are not text parsed."""
    values = dict(options)
    for name in options.keys() & _TYPES.keys():
        read, example = _TYPES[name]
        if isinstance(options[name], str):
            try:
                values[name] = read(options[name])
            except (ValueError, KeyError):
                raise UserError(
                    f"#{name}={options[name]} is not a valid value; write for example #{name}={example}."
                ) from None
    return values
