"""Is the fall due to palette size relative to width: how good is the part of the last state that the output uses?

    python -m analyses.head_width RUN DATASET --out FOLDER [--limit N] [--seeds 3]

The output matrix (V colours x D) reads at most V - 1 directions of the last normalised state, since adding one number
to all logits changes nothing. The pooled last state is split into those directions (its row space) and the rest, both
are probed, and beside each a random subspace of the same dimension (--seeds of them). Prints a line a part; FOLDER gets
the features, the records and `head_width.csv`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analyses import command_line, start, write
from probekit import UserError, extract, load_dataset, load_encoder
from probekit.encoders.igpt import IGPTEncoder
from probekit.evaluate.sweep import sweep
from probekit.results.results import Results

CS = tuple(10.0**k for k in range(-3, 6))
RANK_TOLERANCE = 1e-5  # of the largest singular value: float32 weights have about seven digits


def split_of_head(head_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases (D, r) of the row space of the centred output matrix, and (D, D - r) of the rest."""
    centred_VD = (head_VD - head_VD.mean(0)).double()
    _, singular, rows_DD = torch.linalg.svd(centred_VD, full_matrices=True)
    r = int((singular > RANK_TOLERANCE * singular[0]).sum())
    return rows_DD[:r].T.float(), rows_DD[r:].T.float()


class HeadParts:
    """The last layer of an iGPT encoder in parts: used by the output matrix, not used, random ones, and complete."""

    def __init__(self, encoder: IGPTEncoder, seeds: int) -> None:
        last = encoder.layers[-1]
        self._last, self.prepare = encoder, encoder.prepare
        read_Dr, unread_Ds = split_of_head(encoder.model.head.weight.detach())
        parts = {"read": read_Dr, "unread": unread_Ds}
        for seed in range(seeds):
            noise = torch.randn(len(read_Dr), len(read_Dr), generator=torch.Generator().manual_seed(seed))
            random_DD = torch.linalg.qr(noise)[0]
            parts[f"random-{seed}-as-read"] = random_DD[:, : read_Dr.shape[1]]
            parts[f"random-{seed}-as-unread"] = random_DD[:, read_Dr.shape[1] :]
        # an empty or complete part adds nothing to the complete state
        self._bases = {name: basis for name, basis in parts.items() if 0 < basis.shape[1] < len(read_Dr)}
        self.layers = ("whole", *self._bases)
        self.widths = (len(read_Dr), *(basis.shape[1] for basis in self._bases.values()))
        self.provenance = encoder.provenance | {"parts_of": last, "depths": list(range(len(self.layers)))}

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[Tensor]:
        whole_BD = self._last(images_BHWC, row_ids_B)[-1]
        return [whole_BD, *(whole_BD @ basis for basis in self._bases.values())]


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract the parts, probe them, print and write the table."""
    import pandas as pd

    parser = command_line(__doc__, folders="")
    parser.add_argument("run")
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    name = f"igpt:{options.run}"
    encoder = load_encoder(name, layers=load_encoder(name).layers[-1])
    if not isinstance(encoder, IGPTEncoder):
        raise UserError(f"{name} is a {type(encoder).__name__}, not an iGPT; give a run of `probekit train`.")
    parts = HeadParts(encoder, options.seeds)
    store = extract(parts, load_dataset(options.dataset), out=options.out / "features.h5", limit=options.limit)
    sweep(store, options.out, Cs=CS)
    rows = [
        [r.layers[0], r.width, round(100 * r.accuracy, 2), round(100 * r.metrics["top1_low"], 2)]
        for r in Results(options.out)
    ]
    frame = pd.DataFrame(rows, columns=["part", "columns", "top1", "top1_low"])
    write(options.out / "head_width", frame)
    config = encoder.model.config
    print(f"{options.run}: V = {config.vocab_size}, D = {config.n_embd}", frame.to_string(index=False), sep="\n")


if __name__ == "__main__":
    start(main)
