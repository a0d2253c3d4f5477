# ruff: noqa: F401  (the imports for type checkers repeat the table of names)
"""probekit: from images to the layer-wise depth curve of any visual encoder, with certified linear probes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# imported on first use, so that `import probekit` is fast
_HOME = {
    "FeatureStore": "features.store",
    "LinearProbe": "probes.linear",
    "LinearProbeCV": "probes.linear",
    "MemoryStore": "features.memory_store",
    "PROTOCOLS": "selection.protocol",
    "Protocol": "selection.protocol",
    "Results": "results.results",
    "UserError": "runtime.errors",
    "compare": "results.results",
    "concat": "evaluate.concat",
    "extract": "features.extract",
    "fit_path": "solver.path",
    "list_datasets": "datasets",
    "load_dataset": "datasets",
    "load_encoder": "encoders",
    "predict": "evaluate.predict",
    "study": "evaluate.study",
    "sweep": "evaluate.sweep",
    "verify": "features.verify",
    "write_report": "reports",
}
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:  # for editors and type checkers
    from probekit.datasets import list_datasets, load_dataset
    from probekit.encoders import load_encoder
    from probekit.evaluate.concat import concat
    from probekit.evaluate.predict import predict
    from probekit.evaluate.study import study
    from probekit.evaluate.sweep import sweep
    from probekit.features.extract import extract
    from probekit.features.memory_store import MemoryStore
    from probekit.features.store import FeatureStore
    from probekit.features.verify import verify
    from probekit.probes.linear import LinearProbe, LinearProbeCV
    from probekit.reports import write_report
    from probekit.results.results import Results, compare
    from probekit.runtime.errors import UserError
    from probekit.selection.protocol import PROTOCOLS, Protocol
    from probekit.solver.path import fit_path


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probekit' has no attribute {name!r}")
    value = getattr(import_module(f"probekit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
