"""`module:function`: a user's function that returns data, or a data set class in torchvision's convention.

torchvision's data sets are classes that take `root` and either `train=True | False` or `split="train" | ...`; such a
class is called once per split.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, first_line

# what classes raise for a split that they do not have
NO_SPLIT = (ValueError, KeyError, AssertionError, NotImplementedError)


class _NoSplitError(UserError):
    pass


def call(function: Callable[..., Any], spec: str, root: str | Path | None, options: dict[str, Any]) -> Any:
    """What `function` returns; for a class in torchvision's convention, {"train": ..., "test": ...}."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes_root = "root" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if root is not None and not takes_root:
        raise UserError(f"{spec} takes no root, but root={root} was given; leave it out.")
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and root is None:
        raise UserError(f"{spec} needs a folder; give root=FOLDER (on the command line --root).")
    given = {**options, **({"root": str(root)} if root is not None else {})}

    def made(**more: Any) -> Any:
        try:
            return function(**given, **more)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own code raises
            called = ", ".join(f"{key}={value!r}" for key, value in {**given, **more}.items())
            reason = f"{spec}({called}) failed ({type(error).__name__}: {first_line(error)})."
            raise (_NoSplitError if isinstance(error, NO_SPLIT) else UserError)(reason) from error

    if "root" in parameters and "train" in parameters and "train" not in options:
        return {"train": made(train=True), "test": made(train=False)}
    if "root" not in parameters or "split" not in parameters or "split" in options:
        return made()
    found: dict[str, Any] = {}
    absent: list[_NoSplitError] = []
    for written, split in SPLIT_NAMES.items():
        try:
            if split not in found:
                found[split] = made(split=written)
        except _NoSplitError as error:
            absent.append(error)
    if "train" not in found:
        raise UserError(f"{absent[0]} Write a function that returns a dict with train and test.")
    return found
