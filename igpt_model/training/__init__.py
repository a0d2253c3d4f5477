"""Pre-training and fine-tuning: configuration, data, optimiser, loop, checkpoints."""
