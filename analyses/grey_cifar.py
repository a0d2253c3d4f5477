"""CIFAR-10 in grey: photographs on which linear probes of raw pixels do badly, with a small palette.

    CIFAR10='FOLDER/cifar10-*.zip' probekit train analyses.grey_cifar:dataset --resolution 12 --n-colours 32 ...

A linear probe of CIFAR-10's pixels uses mostly colour. In grey, a palette of 16 to 32 levels is nearly exact,
so that palette and width can be equal in a model small enough to be trained for long. Row ids and the validation split
are those of the data set that the environment variable CIFAR10 names (a folder, an archive, or a pattern of archives).
"""

import os
from functools import partial

import numpy as np
from PIL import Image

from probekit import UserError
from probekit.datasets import load_dataset
from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split, Splits


def grey(split: Split) -> Split:
    """Return the split with every picture converted to one channel (ITU-R 601 luma, as Pillow's "L")."""
    images = [np.asarray(Image.fromarray(image).convert("L")) for image in split.images(0, len(split))]
    return Split.of(ArrayImages(np.stack(images)), split.labels, split.row_ids)


def dataset() -> Dataset:
    """Return the data set of three splits, each read on first access."""
    if "CIFAR10" not in os.environ:
        raise UserError(
            "Set the environment variable CIFAR10 to the path of CIFAR-10, for example 'data/cifar10-*.zip'."
        )
    colour = load_dataset(os.environ["CIFAR10"])
    splits = Splits({name: partial(_read, colour, name) for name in colour.splits})
    return Dataset("grey-cifar10", colour.classes, {**colour.provenance, "colours": "grey"}, splits)


def _read(colour: Dataset, name: str) -> Split:
    return grey(colour.splits[name])
