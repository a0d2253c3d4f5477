"""Certified linear probes: whole penalty paths of multinomial logistic regression, and their neighbours."""

from probekit.probes.linear_probe import LinearProbe, LinearProbeCV
from probekit.probes.path import ProbePath, fit_path
from probekit.probes.protocols import PROTOCOLS, Protocol, get_protocol

__all__ = ["PROTOCOLS", "LinearProbe", "LinearProbeCV", "ProbePath", "Protocol", "fit_path", "get_protocol"]
