"""`module:function`: the user's own data, and classes that follow torchvision's convention.

torchvision's data sets are classes that take `root` and either `train=True | False` or `split="train" | ...`; such a
class is called once for each split that it has.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, first_line


def call(function: Callable[..., Any], spec: str, root: str | Path | None, options: dict[str, Any]) -> Any:
    """What `function` returns; of a class in torchvision's convention, {"train": ..., "test": ...}."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes_root = "root" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if root is not None and not takes_root:
        raise UserError(f"{spec} takes no root, but root={root} was given; leave it out.")
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and root is None:
        raise UserError(f"{spec} needs its folder; give root=FOLDER (on the command line --root).")
    given = {**options, **({"root": str(root)} if root is not None else {})}

    def made(**more: Any) -> Any:
        try:
            return function(**given, **more)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{spec} cannot be read under root={root} ({first_line(error)}).") from None

    if "root" in parameters and "train" in parameters and "train" not in options:
        return {"train": made(train=True), "test": made(train=False)}
    if "root" in parameters and "split" in parameters and "split" not in options:
        found: dict[str, Any] = {}
        for written, split in SPLIT_NAMES.items():
            if split in found:
                continue
            try:
                found[split] = made(split=written)
            except UserError:
                raise
            except ValueError:  # torchvision's own check of the argument: there is no such split
                continue
        if "train" not in found:
            raise UserError(f"{spec} has no train split; write a function that returns a dict with train and test.")
        return found
    return function(**given)
