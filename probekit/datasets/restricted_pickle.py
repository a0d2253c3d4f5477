"""Read the pickles that data sets were published as, without running what a pickle may contain.

A pickle can name any function to call. This reader looks up nothing but the few names that plain NumPy arrays need.
"""

import io
import pickle
from typing import Any

from probekit.runtime.errors import UserError, first_line

_ARRAY_NAMES = ("_reconstruct", "scalar", "_frombuffer")
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module in ("multiarray", "numeric")
        for name in _ARRAY_NAMES
    ),
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # NumPy 2 moved its core; files from before still name the old place
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def loads(content: bytes, name: str) -> Any:
    """Unpickle numbers, text, lists, dictionaries and arrays.

    Python 2's strings become str (latin-1).

    Raises
    ------
    UserError
        The pickle is cut short, or asks for anything else; the message names the file.
    """
    try:
        return _Restricted(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise UserError(
            f"{name} is not a pickle of plain arrays ({first_line(error)}); download it again from the source."
        ) from error
