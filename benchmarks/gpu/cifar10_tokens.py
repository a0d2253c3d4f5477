"""CIFAR-10 as tokens, small enough to travel: `python benchmarks/gpu/cifar10_tokens.py --out .gpu/cifar10-512`.

The lossless archives weigh 115 MB, and 64 MiB travel to the machine with the GPU. What the network sees is less than
the picture: a token of 9 bits a pixel. So the palette is fitted here (512 colours, training rows only), every picture
encoded, and the tokens of 10,000 pictures at a time are compressed by xz: about 40 MB in all. On the other side `load`
gives back a Dataset of palette pictures, with the labels, row ids and splits of the archives. Three things follow:
- The palette's colours are rounded to whole RGB values, so that a palette picture's tokens are its own tokens again.
- Flips and shifts only move pixels, so training on palette pictures is training on the pictures.
- The control "pixels" is probed on palette pictures there: what the network is given, not what the camera saw. On the
  archives themselves it is one CPU command: `probekit study pixels --on '/data/cifar10-*.zip' --out ...`.

A block that is there is not packed again.
"""

import argparse
import json
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from igpt_model import ImageTransform, Palette, atomic
from igpt_model.palette import to_unit
from probekit import load_dataset
from probekit.datasets import Dataset, Split
from probekit.datasets.images import ArrayImages

SOURCE = "/work/shared/data/cifar10-*.zip"
BLOCK = 10_000
PALETTE_IMAGES = 10_000
# tokens are two bytes wide, low byte first
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}]


def whole_colours(palette):
    """The palette with its colours rounded to what a uint8 picture can show."""
    colours = palette.decode(np.arange(len(palette))[:, None], resolution=1)
    return Palette(to_unit(colours.reshape(-1, 3)))


def prepared(split, start, stop, side):
    """Pictures `start` to `stop` of a split, uint8 (n, side, side, 3)."""
    transform = ImageTransform(side)
    return np.stack([transform(image) for image in split.images(start, stop)])


def pack(data, out, side=32, n_colours=512):
    """Write palette, labels and tokens of a Dataset to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    place = out / "palette.safetensors"
    if not place.exists():
        train = data.splits["train"]
        chosen = np.unique(np.linspace(0, len(train) - 1, PALETTE_IMAGES).astype(int))
        whole_colours(Palette.fit(prepared(train.take(chosen), 0, len(chosen), side), n_colours)).save(place)
    palette = Palette.load(place)
    for name, split in data.splits.items():
        np.savez(out / f"{name}.npz", labels=split.labels.astype(np.int64), row_ids=split.row_ids)
        for start in range(0, len(split), BLOCK):
            block = out / f"{name}-{start:06d}.xz"
            if not block.exists():
                tokens = palette.encode(prepared(split, start, min(start + BLOCK, len(split)), side))
                atomic.write_bytes(block, lzma.compress(tokens.astype("<u2").tobytes(), filters=FILTERS))
            print(f"{block}: {block.stat().st_size / 1e6:.1f} MB", flush=True)
    provenance = {**data.provenance, "packed": f"tokens of a palette of {n_colours} colours at {side} x {side}"}
    # last, so that a folder without it is known to be unfinished
    about = {"name": data.name, "classes": data.classes, "side": side, "provenance": provenance}
    atomic.write_json(out / "about.json", about)


def load(folder):
    """Dataset of palette pictures, and the palette, from a folder that `pack` wrote."""
    folder = Path(folder)
    about = json.loads((folder / "about.json").read_text())
    palette = Palette.load(folder / "palette.safetensors")
    parts = {}
    for name in ("train", "val", "test"):
        with np.load(folder / f"{name}.npz") as arrays:
            labels, row_ids = arrays["labels"], arrays["row_ids"]
        with ThreadPoolExecutor(8) as pool:  # lzma lets other threads run
            blocks = list(pool.map(lambda p: lzma.decompress(p.read_bytes()), sorted(folder.glob(f"{name}-*.xz"))))
        tokens = np.frombuffer(b"".join(blocks), "<u2").reshape(len(labels), -1)
        parts[name] = Split.of(ArrayImages(palette.decode(tokens, about["side"])), labels, row_ids)
    return Dataset(about["name"], tuple(about["classes"]), about["provenance"], parts), palette


def main():
    """Pack the archives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", nargs="?", default=SOURCE, help="an image folder, archive, or quoted glob of archives"
    )
    parser.add_argument("--out", type=Path, default=Path(".gpu/cifar10-512"))
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--colours", type=int, default=512)
    given = parser.parse_args()
    pack(load_dataset(given.source), given.out, given.side, given.colours)
    total = sum(path.stat().st_size for path in given.out.iterdir())
    print(f"{given.out}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
