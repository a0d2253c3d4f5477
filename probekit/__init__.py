"""probekit: from images to the depth curve of any visual encoder, with certified linear probes."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LinearProbe": "probes.linear",
    "LinearProbeCV": "probes.linear",
    "fit_path": "solver.path",
    "FeatureStore": "features.store",
    "load_encoder": "encoders",
    "load_dataset": "datasets",
    "extract": "features.extract",
    "sweep": "evaluate.sweep",
    "concat": "evaluate.concat",
    "study": "evaluate.study",
    "compare": "results.compare",
    "Results": "results.results",
    "UserError": "runtime.errors",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probekit' has no attribute {name!r}")
    value = getattr(import_module(f"probekit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
