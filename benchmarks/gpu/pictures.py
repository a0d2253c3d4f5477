"""Labelled pictures for trials: squares of scikit-learn's two photographs, natural colours without a download."""

import numpy as np
from sklearn.datasets import load_sample_images


def photographs(n, side, seed=0):
    """(n, side, side, 3) uint8 squares of the photographs at half size; labels: which photograph, which half."""
    photos = [np.asarray(photo)[::2, ::2] for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2 * len(photos), n)
    images = np.empty((n, side, side, 3), np.uint8)
    for i, label in enumerate(labels):
        photo = photos[label // 2]
        height, half = photo.shape[0], photo.shape[1] // 2
        top, left = rng.integers(height - side), rng.integers(half - side) + half * (label % 2)
        images[i] = photo[top : top + side, left : left + side]
    return images, labels
