"""Extraction, ours against peers in one run (issue 5, item 1, CPU): `python benchmarks/extract_speed.py [--images N]`.

Writes one CSV row a measure to benchmarks/results/extract_speed.csv.
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from igpt_model import IGPT, ModelConfig, encode
from probekit.features.store import FeatureStore
from probekit.plan import matmul_rate


def best(action, repeats=3):
    """The shortest of a few timings, in seconds, after one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return min(times)


def forward(images):
    """Images a second of ours and of Hugging Face's eager ImageGPT, and our share of the matrix-product rate."""
    from transformers import ImageGPTConfig, ImageGPTModel

    config = ModelConfig(n_layer=12, n_embd=256, n_head=8, vocab_size=512, n_positions=256)
    model = IGPT(config).eval()
    sizes = {"vocab_size": 513, "n_positions": 256, "n_embd": 256, "n_layer": 12, "n_head": 8}
    peer = ImageGPTModel(ImageGPTConfig(**sizes, attn_implementation="eager")).eval()
    tokens = torch.randint(0, 512, (images, 256))

    def theirs():
        with torch.no_grad():
            states = peer(input_ids=tokens, output_hidden_states=True).hidden_states
            return [state.mean(dim=1) for state in states]

    ours_s, theirs_s = best(lambda: encode(model, tokens)), best(theirs)
    rate = matmul_rate(4096, 5.0)
    yield "ours images/s", images / ours_s
    yield "hf eager images/s", images / theirs_s
    yield "ratio to hf eager", theirs_s / ours_s
    yield "share of matmul rate", config.flops_per_image * images / ours_s / rate


def reading(megabytes=256):
    """Reading a layer back against reading the same bytes of the file, both from the page cache or both not."""
    with tempfile.TemporaryDirectory() as folder:
        X = np.random.default_rng(0).random((megabytes * 1024, 256), dtype=np.float32)
        store = FeatureStore.from_arrays(Path(folder) / "f.h5", {"train": (X, np.arange(len(X)) % 10)})

        def plain():
            buffer = np.empty(X.nbytes, np.uint8)
            with open(store.path, "rb", buffering=0) as file:
                file.readinto(buffer)

        ours_s, plain_s = best(lambda: store.read("train", 0)), best(plain)
    yield "layer read MB/s", X.nbytes / ours_s / 1e6
    yield "plain file read MB/s", X.nbytes / plain_s / 1e6
    yield "read share of plain", plain_s / ours_s


def main():
    """Measure, print, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    target = Path(__file__).parent / "results" / "extract_speed.csv"
    new = not target.exists()
    with open(target, "a", newline="") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(["date", "threads", "load", "images", "measure", "value"])
        for measures in (forward(arguments.images), reading()):
            for name, value in measures:
                date, load = time.strftime("%Y-%m-%d"), f"{os.getloadavg()[0]:.1f}"
                rows.writerow([date, torch.get_num_threads(), load, arguments.images, name, f"{value:.4g}"])
                print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
