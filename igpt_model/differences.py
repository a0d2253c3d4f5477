"""Differences between the settings stored in a file or folder and those of the current call."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from igpt_model.atomic import write_json
from igpt_model.checked_json import as_json, read_json
from igpt_model.errors import UserError

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


def differences(there: Any, here: Any, name: str = "", free: Iterable[str] = ()) -> list[str]:
    """Return the changes but those in `free` as "name: old there, new here", with `name` before each."""
    named = {f"{name}.{key}".strip("."): pair for key, pair in changes(there, here).items() if key not in free}
    return ["{}: {} there, {} here".format(key, *_short(*pair)) for key, pair in named.items()]


def differ(there: Any, here: Any, free: Iterable[str] = ()) -> str:
    """Return the first few changes but those in `free` in one line; empty if there are none."""
    found = differences(there, here, free=free)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def claim(
    path: Path,
    settings: Mapping[str, Any],
    begun: Callable[[Mapping[str, Any]], bool],
    what: str,
    free: Iterable[str] = (),
) -> dict[str, Any]:
    """Write the settings of what begins in a folder, or compare them with those that it was begun with.

    Settings of which `begun` says that nothing was made with them yet, {} where there are none, are replaced. Names in
    `free` may differ; those that do are returned with their new values.

    Raises
    ------
    UserError
        The folder is not writable, or contains `what` with different settings, which the message lists.
    """
    try:
        try:
            there = read_json(path, dict) if path.exists() else {}
        except UserError as error:
            # without advice on what to give, because the file is one of ours
            problem = re.sub(r"; [^;()']*$|\.$", "", str(error))
            raise UserError(f"{problem}; restore it, or give another --out.") from None
        if not begun(there):
            write_json(path, as_json(settings))
            return {}
    except OSError as error:
        raise UserError(
            f"The folder {path.parent} cannot be written or read ({error.strerror}); give another --out."
        ) from error
    found = changes(there, settings)
    if found.keys() - set(free):
        raise UserError(
            f"{path.parent} contains {what} with different settings ({differ(there, settings, free)}); use those or "
            "another --out."
        )
    return {name: new for name, (_, new) in found.items()}


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
