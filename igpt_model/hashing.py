"""Content hashes of 32 hexadecimal digits, identical on every machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from igpt_model.checked_json import open_regular


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """Hash named arrays or tensors: names, dtypes, shapes and bytes, in the order of the names."""
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        value = arrays[name]
        array = np.ascontiguousarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Hash a JSON value in canonical form (sorted keys, no spaces)."""
    return xxhash.xxh3_128_hexdigest(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def hash_file(path: str | Path) -> str:
    """Hash a regular file's bytes, read in blocks of 8 MiB."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(1 << 23):
            digest.update(block)
    return digest.hexdigest()
