"""What coarser number formats do to features and probes: `python benchmarks/number_formats.py [--device cuda]`.

Extracts a run's features with float32 arithmetic and storage, then with bfloat16 arithmetic (and, on a GPU, TF32), then
with float16 storage; probes some layers of each; and says how far features are apart, how accuracy changes, and how
many test rows are answered otherwise. The default run is the one that comes with the demo. Rows go to
benchmarks/results/number_formats.csv.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from rows import parser, record

import probekit
from probekit import extract, load_dataset, load_encoder, sweep
from probekit.results.predictions import row_predictions

SHIPPED = Path(probekit.__file__).parent / "pretrained" / "wandering-digits"


def formats(device):
    """Name, arithmetic, storage and TF32 of each variant; the first is the reference."""
    yield "float32", "float32", "float32", False
    if device == "cuda":
        yield "TF32", "float32", "float32", True
    yield "bfloat16 arithmetic", "bfloat16", "float32", False
    yield "float16 storage", "float32", "float16", False
    yield "bfloat16 arithmetic, float16 storage", "bfloat16", "float16", False


def measures(run, dataset, device, n_layers, limit=None):
    """For each format and layer: distance of features, accuracy, and rows answered otherwise than by float32.

    `dataset` is a name or a Dataset; of each split at most `limit` rows are taken.
    """
    data = dataset if hasattr(dataset, "splits") else load_dataset(dataset)
    reference = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arithmetic, storage, tf32 in formats(device):
            encoder = load_encoder(f"igpt:{run}", device=device, dtype=arithmetic)
            own = Path(folder) / name.replace(" ", "-").replace(",", "")
            torch.backends.cuda.matmul.allow_tf32 = tf32
            store = extract(encoder, data, own / "f.h5", dtype=storage, limit=limit)
            torch.backends.cuda.matmul.allow_tf32 = False  # the probes themselves are solved alike
            chosen = [store.layers[k] for k in np.linspace(0, len(store.layers) - 1, n_layers + 1).astype(int)[1:]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = sweep(store, own, layers=chosen, device=device)
            for found in results:
                layer, rows = found.layers[0], row_predictions(found)
                X = store.read("test", layer)[0]
                if name == "float32":
                    reference[layer] = (X, rows.predictions)
                X0, predictions = reference[layer]
                yield f"{name}, layer {layer}: test accuracy", found.accuracy
                yield (
                    f"{name}, layer {layer}: relative distance of features",
                    np.linalg.norm(X - X0) / np.linalg.norm(X0),
                )
                yield f"{name}, layer {layer}: rows answered otherwise", int((rows.predictions != predictions).sum())


def main():
    """Measure, print, and append the rows."""
    options = parser(__doc__, "device")
    options.add_argument("run", nargs="?", default=str(SHIPPED))
    options.add_argument("dataset", nargs="?", default="wandering-digits")
    options.add_argument("--layers", type=int, default=3)
    given = options.parse_args()
    record("number_formats", measures(given.run, given.dataset, given.device, given.layers), given.device)


if __name__ == "__main__":
    main()
