"""Import a Python object by name, `package.module:name`."""

import importlib
import os
import sys
from typing import Any

from probekit.runtime.errors import UserError, explained


def import_object(spec: str) -> Any:
    """The object called `package.module:name`; modules in the current folder can be imported too.

    Raises
    ------
    UserError
        The text does not have that form, the module cannot be found, or it has no such name. Errors raised inside the
        user's module are not caught, because the user needs their traceback.
    """
    module_name, _, name = spec.partition(":")
    if not (module_name and name and all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")])):
        raise UserError(f"{spec!r} is not a Python object's name; write package.module:name.")
    # the console script, unlike `python -m`, does not look in the current folder
    sys.path.insert(0, os.getcwd())
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"Module {error.name!r} (from {spec!r}) was not found; install it or check the name.") from None
    finally:
        sys.path.remove(os.getcwd())
    for part in name.split("."):
        if not hasattr(value, part):
            raise UserError(f"{module_name} has no {name!r} (from {spec!r}); check the name.")
        value = getattr(value, part)
    return value


def library(module: str, user: str) -> Any:
    """The module of an optional package, imported for `user`; a `UserError` where that cannot be done."""
    package = module.partition(".")[0]
    advice = f"pip install {package}, and check that its dependencies (such as torch and torchvision) match"
    with explained(f"{user} needs {package}, which cannot be imported", advice):
        return importlib.import_module(module)
