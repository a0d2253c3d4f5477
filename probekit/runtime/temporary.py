"""Temporary folders for results and features without an `out`, removed when Python exits."""

import tempfile
from pathlib import Path

_folders: list[tempfile.TemporaryDirectory[str]] = []


def temporary_folder() -> Path:
    """A new empty folder."""
    _folders.append(tempfile.TemporaryDirectory(prefix="probekit-"))
    return Path(_folders[-1].name)
