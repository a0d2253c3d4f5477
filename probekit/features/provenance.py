"""Provenance of a feature file, and how it differs from the provenance of a requested one."""

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
    """Versions of the packages that computed the features."""
    return {
        "probekit": import_module("probekit").__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }


def refuse_other(path: Path, there: Header, asked: Header) -> None:
    """Raise `UserError` unless the file on disk has the requested provenance; the message lists the differences."""
    found = differ(_comparable(there), _comparable(asked))
    if found:
        raise UserError(f"{path} contains different features ({found}): choose another --out or delete the file.")


def _comparable(header: Header) -> dict[str, Any]:
    fields = asdict(header)
    # torch is the only package whose version changes the bits of a feature
    fields["versions"] = {"torch": header.versions.get("torch")}
    # a weights hash identifies an encoder wherever it is stored; a data set has no such hash, so its paths count
    if "weights_hash" in header.encoder:
        fields["encoder"] = content(header.encoder)
    return fields
