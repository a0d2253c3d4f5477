"""Image folders of random pixels, as the tests of data sets need them."""

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def write_images(folder, names, kind="PNG"):
    """Images of 8 x 8 pixels under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name, kind)


def image_folder(root, *folders, count=6, suffix="png", kind="PNG"):
    """`root`, with `count` images in each of `folders`."""
    for folder in folders:
        write_images(root / folder, [f"{i}.{suffix}" for i in range(count)], kind)
    return root


def split_sizes(data):
    """Number of images by split."""
    return {split: len(data.splits[split]) for split in data.splits}
