"""Probes: `LinearProbe` and `LinearProbeCV` for arrays, and every kind that a sweep can fit, by name in `PROBES`."""

from importlib import import_module
from pkgutil import iter_modules

from probekit.probes.linear import LinearProbe, LinearProbeCV
from probekit.probes.probe import PROBES, FittedProbe, Probe
from probekit.selection.protocol import PROTOCOLS, Protocol, get_protocol
from probekit.solver.path import ProbePath, fit_path

# a new kind of probe is a module in this folder that defines a `Probe`
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "PROBES",
    "PROTOCOLS",
    "FittedProbe",
    "LinearProbe",
    "LinearProbeCV",
    "Probe",
    "ProbePath",
    "Protocol",
    "fit_path",
    "get_protocol",
]
