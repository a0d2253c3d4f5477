"""Utilities for all of probekit: errors, escaping, imports, memory, progress, worker processes."""
