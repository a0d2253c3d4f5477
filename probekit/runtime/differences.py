"""What differs between the settings that a file or folder was made with and those of this call, in words."""

import json
from collections.abc import Iterator
from typing import Any

from igpt_model.checked_json import as_json

SHOWN = 6
LENGTH = 80  # characters of a value


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Each place where two values differ once both are JSON, as "name: old there, new here"."""
    # a file gives lists back for tuples, and text for keys that were numbers
    return _differences(as_json(there), as_json(here), name)


def differ(there: Any, here: Any) -> str:
    """The first few `differences` in one line; empty where there are none."""
    found = list(differences(there, here))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _differences(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {_short(old)} there, {_short(new)} here"


def _short(value: Any) -> str:
    numbers = isinstance(value, list) and len(value) > 2 and all(isinstance(x, int | float) for x in value)
    text = (
        f"{len(value)} values {value[0]:.3g} to {value[-1]:.3g}" if numbers else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."
