"""Choices made on held-out rows: penalty strength, folds, layers, and the protocols that fix them."""
