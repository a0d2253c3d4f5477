"""What made a file, and what differs when somebody asks for another one under the same name."""

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from igpt_model.checked_json import as_json
from probekit.features.format import Header, content
from probekit.runtime.errors import UserError

SHOWN = 5


def versions() -> dict[str, str]:
    """Versions of what the bits of a feature depend on."""
    return {
        "probekit": import_module("probekit").__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Each place where two values differ once both are JSON, as "name: old there, new asked for"."""
    # a file gives lists back for tuples, and text for keys that were numbers
    return _differences(as_json(old), as_json(new), name)


def _differences(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{name}[{index}]")
    elif old != new:
        yield f"{name}: {_short(old)} there, {_short(new)} asked for"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse_other(path: Path, there: Header, asked: Header) -> None:
    """Raise unless the file on disk is the one that is asked for; the message says what differs."""
    found = list(differences(_comparable(there), _comparable(asked)))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{path} holds other features ({'; '.join(found[:SHOWN])}{more}): choose another --out or delete the file."
        )


def _comparable(header: Header) -> dict[str, Any]:
    fields = asdict(header)
    # of the versions only torch's changes the bits of a feature
    fields["versions"] = {"torch": header.versions.get("torch")}
    # weights are known by their hash wherever they lie; a data set's listing alone does not tell one from another
    if "weights_hash" in header.encoder:
        fields["encoder"] = content(header.encoder)
    return fields
