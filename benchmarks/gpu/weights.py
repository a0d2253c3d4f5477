"""A run's last weights in bfloat16, cut into pieces that come back: `python benchmarks/gpu/weights.py RUN --into $OUT`.

From the machine with the GPU come at most 64 MiB a call, in files of at most 16 MiB; 38.8 million weights are 78 MB in
bfloat16, so part 1 has four pieces and part 2 the rest. `cat weights.[0-9]* > weights.safetensors` joins them; the
SHA-256 of the whole is in every part. Float32 would take four calls more, and extraction in bfloat16 arithmetic rounds
the matrices to these anyway.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

from igpt_model.training.checkpoint import latest_checkpoint, read_weights

PIECE = 15 << 20
PIECES = 4  # a call


def main():
    """Write one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--piece", type=int, default=PIECE, help="bytes of a file")
    given = parser.parse_args()
    folder = latest_checkpoint(given.run)
    # sorted: the same bytes in every call
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in sorted(read_weights(folder).items())}
    content = save(weights, {"step": folder.name, "dtype": "bfloat16"})
    given.into.mkdir(parents=True, exist_ok=True)
    n_pieces = -(-len(content) // given.piece)
    for number in range(PIECES * (given.part - 1), min(PIECES * given.part, n_pieces)):
        piece = content[number * given.piece : (number + 1) * given.piece]
        (given.into / f"weights.{number:02d}").write_bytes(piece)
    digest = hashlib.sha256(content).hexdigest()
    (given.into / "weights.sha256").write_text(f"{digest}  weights.safetensors\n")
    print(f"part {given.part} of {-(-n_pieces // PIECES)}: {len(content) / 1e6:.1f} MB in {n_pieces} pieces, {digest}")


if __name__ == "__main__":
    main()
