"""What made a file, and what differs when somebody asks for another one under the same name."""

import platform
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from igpt_model.differences import differ
from probekit.features.format import Header, content
from probekit.runtime.errors import UserError


def versions() -> dict[str, str]:
    """Versions of what the bits of a feature depend on."""
    return {
        "probekit": import_module("probekit").__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }


def refuse_other(path: Path, there: Header, asked: Header) -> None:
    """Raise unless the file on disk is the one that is asked for; the message says what differs."""
    found = differ(_comparable(there), _comparable(asked))
    if found:
        raise UserError(f"{path} contains other features ({found}): choose another --out or delete the file.")


def _comparable(header: Header) -> dict[str, Any]:
    fields = asdict(header)
    # of the versions only torch's changes the bits of a feature
    fields["versions"] = {"torch": header.versions.get("torch")}
    # weights are known by their hash wherever they lie; a data set's listing alone does not tell one from another
    if "weights_hash" in header.encoder:
        fields["encoder"] = content(header.encoder)
    return fields
