"""`load_encoder`: create an encoder from a name or a torch module."""

import inspect
import os
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from igpt_model.arguments import checked
from igpt_model.ranges import SEED, Range, check_range
from probekit.encoders.encoder import Encoder
from probekit.encoders.preparation import check_values
from probekit.runtime.errors import UserError, did_you_mean, explained
from probekit.runtime.written_options import read_values, split_options

ENTRY_POINTS = "probekit.encoders"
# scheme -> module:function, the text after the colon is the first argument
SCHEMES = {
    "igpt": "igpt:load_run",
    "hf": "hf:load_hf",
    "timm": "timm_models:load_timm",
    "torch": "hooks:load_function",
    "random": "igpt:load_random",
    "tokens": "igpt:load_tokens",
    "random:hf": "hf:load_random_hf",
    "random:timm": "timm_models:load_random_timm",
    "pixels": "pixels:PixelEncoder",
    "histogram": "pixels:HistogramEncoder",
}
FORMS = (
    "igpt:RUN, igpt:RUN@STEP, hf:FOLDER_OR_NAME, timm:NAME, torch:package.module:function, pixels, histogram, "
    "random:PRESET, random:RUN, random:hf:NAME, random:timm:NAME, tokens:igpt:RUN"
)


@checked
def load_encoder(spec: Any, name: str | None = None, **options: Any) -> Encoder:
    """Load an encoder by name, or wrap a torch module.

    Parameters
    ----------
    spec : str, torch.nn.Module or Encoder
        `igpt:RUN[@STEP]`, `hf:FOLDER_OR_NAME`, `timm:NAME`, `torch:package.module:function`, `pixels[:SIDE]`,
        `histogram[:SIDE]`, `random:PRESET`, `random:RUN`, `random:hf:NAME`, `random:timm:NAME`, or a scheme that an
        installed package adds through the entry-point group `probekit.encoders`. A module needs `layers=`. Options may
        be appended: `torch:package.module:function#layers=0,2#resolution=32`.
    name : str, optional
        Label in tables and curves instead of the encoder's own name.
    **options
        Options of the encoder (layers, pool, device, dtype, ...); None means not given.

    Returns
    -------
    Encoder

    Raises
    ------
    UserError
        The name is unknown, the encoder does not take an option, or the model cannot be loaded.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if isinstance(spec, str):
        spec, written = split_options(spec)
        options = read_values(written) | options
    for option in options.keys() & _RANGES.keys():
        if isinstance(options[option], int | float):
            check_range(option, options[option], _RANGES[option])
    encoder = _load(spec, options)
    if name is not None:
        encoder.provenance["name"] = name
    return encoder


_RANGES = {
    "resolution": Range(0, 4096),
    **dict.fromkeys(("resize", "crop"), Range(1, 65_536)),
    "prefix_tokens": Range(0, 1_000_000),
    "seed": SEED,
}


def _load(spec: Any, options: dict[str, Any]) -> Encoder:
    if not isinstance(spec, str):
        if hasattr(spec, "state_dict"):
            return _call("torch module", _function("hooks:ModuleEncoder"), [spec], options)
        if all(hasattr(spec, part) for part in ("layers", "widths", "provenance", "prepare")):
            if given := sorted(options.keys() - {"data"}):
                raise UserError(f"The encoder is already loaded and takes no option {', '.join(given)}; leave it out.")
            return spec
        raise UserError(f"A {type(spec).__name__} is not an encoder; give a name ({FORMS}) or a torch module.")
    scheme, colon, rest = spec.partition(":")
    if rest.startswith("~"):  # the shell expands it only at the beginning of a word
        rest = os.path.expanduser(rest)
    if scheme == "random" and rest.partition(":")[0] in ("hf", "timm"):
        inner, colon, rest = rest.partition(":")
        scheme = f"random:{inner}"
    if scheme in ("pixels", "histogram"):
        if colon:
            if not re.fullmatch("[0-9]{1,4}", rest):
                raise UserError(f"{spec!r} is not valid; give the pixels per side, for example {scheme}:32.")
            if options.setdefault("resolution", int(rest)) != int(rest):
                raise UserError(f"{spec} was given with resolution={options['resolution']}; give one of them.")
        return _call(spec, _function(SCHEMES[scheme]), [], options)
    if scheme in SCHEMES:
        if not rest:
            raise UserError(f"{spec!r} is incomplete; write {FORMS}.")
        # only pixel encoders (image size) and the user's functions (test images) need the data set
        if scheme != "torch":
            options.pop("data", None)
        # names too long for a path, folders without permissions, files that disappear
        with explained(f"{spec[:80]!r} cannot be read", "check the path and its permissions", OSError):
            return _call(spec, _function(SCHEMES[scheme]), [rest], options)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == scheme:
            options.pop("data", None)
            return _call(spec, point.load(), [rest], options)
    added = "".join(f", {point.name}:..." for point in entry_points(group=ENTRY_POINTS))
    near = did_you_mean(scheme, SCHEMES)
    if not near and not rest:
        near = f" A model of the Hugging Face hub is hf:{spec}, one of timm is timm:{spec}."
        if os.path.isdir(os.path.join(spec, "checkpoints")):
            near = f" The run in that folder is igpt:{spec}."
    raise UserError(f"The encoder {spec!r} is unknown; write {FORMS}{added}.{near}")


def _function(place: str) -> Callable[..., Encoder]:
    module, name = place.split(":")
    return getattr(import_module(f"probekit.encoders.{module}"), name)


def _call(spec: str, function: Callable[..., Encoder], arguments: list[Any], options: dict[str, Any]) -> Encoder:
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    strange = [key for key in options if key not in parameters]
    if strange and not takes_all:
        known = ", ".join(list(parameters)[len(arguments) :])
        raise UserError(f"{spec} takes no option {', '.join(strange)}; it takes {known}.")
    own = str(getattr(function, "__module__", "")).startswith("probekit.encoders.")
    if own:
        for key in ("mean", "std"):
            if key in options:
                check_values(key, options[key])
    try:
        return (checked(function) if own else function)(*arguments, **options)
    except TypeError as error:  # a function that passes its options on
        refused = re.search(r"(?:unexpected keyword|multiple values for(?: keyword)?) argument '(\w+)'", str(error))
        if refused is None or refused[1] not in options:
            raise
        raise UserError(f"{spec} takes no option {refused[1]}; leave it out.") from None
