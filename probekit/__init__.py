"""probekit: from images to the depth curve of any visual encoder, with certified linear probes."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LinearProbe": "probes.linear_probe",
    "LinearProbeCV": "probes.linear_probe",
    "fit_path": "probes.path",
    "FeatureStore": "features.store",
    "load_encoder": "encoders",
    "load_dataset": "datasets",
    "extract": "features.extract",
    "sweep": "sweep",
    "concat": "concat",
    "study": "study",
    "compare": "results.compare",
    "Results": "results.results",
    "UserError": "errors",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probekit' has no attribute {name!r}")
    value = getattr(import_module(f"probekit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `probekit.sweep` the function, also after somebody has imported the submodule of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
