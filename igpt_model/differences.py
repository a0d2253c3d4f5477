"""Differences between the settings stored in a file or folder and those of the current call."""

import json
from typing import Any

from igpt_model.checked_json import as_json

SHOWN = 6
LENGTH = 80  # characters of a value


def changes(there: Any, here: Any) -> dict[str, tuple[Any, Any]]:
    """Return each place where two values differ once both are JSON, as name -> (value there, value here)."""
    found: dict[str, tuple[Any, Any]] = {}

    def compare(old: Any, new: Any, name: str) -> None:
        if isinstance(old, dict) and isinstance(new, dict):
            for key in [*old, *(key for key in new if key not in old)]:
                compare(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        elif old != new:
            found[name] = old, new

    # JSON turns tuples into lists and numeric keys into text
    compare(as_json(there), as_json(here), "")
    return found


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Return the changes as "name: old there, new here", with `name` before each."""
    named = {f"{name}.{key}".strip("."): pair for key, pair in changes(there, here).items()}
    return ["{}: {} there, {} here".format(key, *_short(*pair)) for key, pair in named.items()]


def differ(there: Any, here: Any) -> str:
    """Return the first few `differences` in one line; empty if there are none."""
    found = differences(there, here)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _short(*values: Any) -> tuple[str, ...]:
    """Two values, abbreviated to the characters around the first difference if they are long."""
    texts = tuple(_summary(value) for value in values)
    if texts[0] == texts[1]:
        texts = tuple(json.dumps(value, ensure_ascii=False) for value in values)
    same = next((i for i, pair in enumerate(zip(*texts, strict=False)) if len(set(pair)) > 1), 0)
    begin = same - 20 if same > LENGTH // 2 and max(map(len, texts)) > LENGTH else 0
    texts = tuple("..." * (begin > 0) + text[begin:] for text in texts)
    return tuple(text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..." for text in texts)


def _summary(value: Any) -> str:
    if isinstance(value, list) and len(value) > 2 and all(isinstance(x, int | float) for x in value):
        return f"{len(value)} values {value[0]:.3g} to {value[-1]:.3g}"
    return json.dumps(value, ensure_ascii=False)
