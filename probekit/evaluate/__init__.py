"""Run probe jobs over feature files: sweeps, concatenated layers, studies, baselines, predictions."""
