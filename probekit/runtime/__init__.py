"""What every part of probekit needs from the machine: errors, devices, ranks, workers, progress, imports."""
