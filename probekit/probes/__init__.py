"""Certified linear probes: whole penalty paths of multinomial logistic regression, and their neighbours."""

from probekit.probes.linear import LinearProbe, LinearProbeCV
from probekit.selection.protocol import PROTOCOLS, Protocol, get_protocol
from probekit.solver.path import ProbePath, fit_path

__all__ = ["PROTOCOLS", "LinearProbe", "LinearProbeCV", "ProbePath", "Protocol", "fit_path", "get_protocol"]
