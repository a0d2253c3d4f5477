"""Extraction on a CPU, ours and the peer in one run: `python benchmarks/extract_speed.py --threads 2`.

Figures of issue 5, item 1: the forward pass of a 12 x 256 iGPT on 256 tokens against Hugging Face's eager ImageGPT and
against this machine's matrix-product rate; what writing HDF5 costs; palette encoding against Hugging Face's image
processor; reading a layer against reading the file. Alternatives take turns, and the best of each counts, so that other
load on the machine meets both. Rows go to benchmarks/results/extract_speed.csv; at the end the goals are listed with
what was measured. `--only forward palette` measures some parts, `--quick` two rounds instead of five, `--cpu-time`
counts CPU time, for a busy machine and one thread.
"""

import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rows import clock_and_name, parser, record, timed, turns
from sklearn.datasets import load_sample_images
from train_speed import product

from igpt_model import IGPT, ImageTransform, ModelConfig, Palette, encode
from probekit.datasets import load_dataset
from probekit.encoders.igpt import IGPTEncoder
from probekit.features.extract import extract
from probekit.features.store import FeatureStore

CONFIG = ModelConfig(n_layer=12, n_embd=256, n_head=8, vocab_size=512, n_positions=256)


def body_flops(config):
    """Operations of the blocks: matrix products and full (not halved) attention, without the output matrix."""
    return config.flops_per_image - 2 * config.n_positions * config.vocab_size * config.n_embd


def hugging_face(config, device, sdpa=False, dtype=torch.float32):
    """Pooled hidden states of Hugging Face's model, as a function of tokens.

    Its ImageGPT has eager attention alone; `sdpa` takes its GPT-2 of the same sizes, which differs in the kind of norm.
    """
    from transformers import GPT2Config, GPT2Model, ImageGPTConfig, ImageGPTModel

    about = {"vocab_size": config.vocab_size + 1, "n_positions": config.n_positions, "n_embd": config.n_embd}
    about |= {"n_layer": config.n_layer, "n_head": config.n_head, "use_cache": False}
    about["attn_implementation"] = "sdpa" if sdpa else "eager"
    made = GPT2Model(GPT2Config(**about)) if sdpa else ImageGPTModel(ImageGPTConfig(**about))
    model = made.to(device, dtype).eval()

    @torch.no_grad()
    def pooled(tokens):
        return [state.mean(dim=1) for state in model(input_ids=tokens, output_hidden_states=True).hidden_states]

    return pooled


def forward(rounds, clock, images=32):
    """Ours, Hugging Face's eager model with all hidden states pooled, and a 4096^3 matrix product, in turn."""
    model, theirs = IGPT(CONFIG).eval(), hugging_face(CONFIG, "cpu")
    tokens = torch.randint(0, 512, (images, 256))
    multiply, operations = product("cpu", "float32", 4096)
    actions = [lambda: encode(model, tokens), lambda: theirs(tokens), multiply]
    ours_s, theirs_s, product_s = turns(actions, max(5, rounds), clock).min(0)
    rate = operations / product_s
    yield "matmul rate, GFLOP/s", rate / 1e9
    yield "ours, images/s", images / ours_s
    yield "HF eager with hidden states, images/s", images / theirs_s
    yield "forward: ratio to HF eager (goal 2)", theirs_s / ours_s
    yield "forward: share of the matmul rate (goal 0.85)", body_flops(CONFIG) * images / ours_s / rate


def writing(rounds, images=96):
    """The same extraction with and without a file, in turn, by the clock on the wall: the disk counts."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images, 16, 16, 3), dtype=np.uint8)
    data = load_dataset((pictures, np.arange(images) % 2))
    encoder = IGPTEncoder(IGPT(CONFIG), Palette.rgb_grid(512), ImageTransform(16))
    parts = [data.splits[name] for name in data.splits]

    def bare():
        for part in parts:
            for start in range(0, len(part), 32):
                rows = slice(start, min(start + 32, len(part)))
                prepared = np.stack([encoder.prepare(image) for image in part.images(rows.start, rows.stop)])
                encoder(prepared, part.row_ids[rows])

    def written():
        with tempfile.TemporaryDirectory() as folder:
            extract(encoder, data, Path(folder) / "f.h5", batch_size=32)

    written_s, bare_s = turns([written, bare], rounds).min(0)
    yield "extraction with its file, images/s", images / written_s
    yield "cost of writing HDF5 (goal at most 0.05)", written_s / bare_s - 1


def cut(photograph):
    """The 32 x 32 pictures that an image (H, W, 3) is made of, (N, 32, 32, 3)."""
    rows, columns = photograph.shape[0] // 32, photograph.shape[1] // 32
    tiles = photograph[: rows * 32, : columns * 32].reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, 32, 32, 3))


def palette(rounds, clock):
    """Tokens of 32 x 32 pictures, and whether each is the nearest centre, ties to the lowest index."""
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    ours = Palette.fit(load_sample_images().images, 512)
    theirs = ImageGPTImageProcessorPil(clusters=ours.centres_V3, do_resize=False)
    pictures = np.concatenate([cut(photograph) for photograph in load_sample_images().images])
    images = len(pictures)
    first_s, tokens = timed(lambda: ours.encode(pictures), clock=clock)
    some = list(pictures[:8])
    ours_s, theirs_s = turns([lambda: ours.encode(pictures), lambda: theirs(some)], 3 * rounds, clock).min(0)
    scaled = pictures[:16].reshape(-1, 1, 3) / 127.5 - 1
    nearest = ((scaled - ours.centres_V3.astype(np.float64)) ** 2).sum(2).argmin(1)
    yield "palette: ours, images/s", images / ours_s
    yield "palette: ours while its table fills, images/s", images / first_s
    yield "palette: HF processor, images/s", len(some) / theirs_s
    yield "palette: ratio to HF processor (goal 200)", theirs_s / len(some) / (ours_s / images)
    yield "palette: share of exactly nearest centres (goal 1)", float((tokens[:16].ravel() == nearest).mean())


def forget(path):
    """Ask the system to drop a file from its page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(rounds, megabytes=192):
    """One layer of three read back, against reading as many bytes of a plain file; cold where the system lets us."""
    with tempfile.TemporaryDirectory() as folder:
        X = np.random.default_rng(0).random((megabytes * 1024 // 3, 256), dtype=np.float32)
        store = FeatureStore.from_arrays(Path(folder) / "f.h5", {"train": ([X, X, X], np.arange(len(X)) % 10)})
        plain_file = Path(folder) / "plain"
        X.tofile(plain_file)

        def cold(action):
            def read():
                forget(store.path)
                forget(plain_file)
                return timed(action)[0]

            return read

        def plain():
            buffer = np.empty(X.nbytes, np.uint8)
            with open(plain_file, "rb", buffering=0) as file:
                view, at = buffer.data, 0
                while at < len(view):
                    at += file.readinto(view[at:])

        layer_s, plain_s = float("inf"), float("inf")
        for _ in range(4 * rounds):
            layer_s = min(layer_s, cold(lambda: store.read("train", 1))())
            plain_s = min(plain_s, cold(plain)())
    yield "reading: one layer, MB/s", X.nbytes / layer_s / 1e6
    yield "reading: plain sequential, MB/s", X.nbytes / plain_s / 1e6
    yield "reading: share of plain sequential (goal 0.8)", plain_s / layer_s


def judged(measures, verdicts):
    """Pass measures on, and keep for each that names its goal a line saying whether it was met."""
    for what, value in measures:
        if goal := re.search(r"\(goal (at most )?([\d.]+)\)", what):
            met = value <= float(goal[2]) if goal[1] else value >= float(goal[2])
            verdicts.append(f"{'met    ' if met else 'NOT MET'}  {value:8.3g}  {what}")
        yield what, value


def main():
    """Measure, print, append the rows, and list the goals."""
    options = parser(__doc__, "cpu_time")
    options.add_argument("--threads", type=int, help="of torch; all cores unless given")
    options.add_argument("--only", nargs="+", choices=["forward", "writing", "palette", "reading"], help="these parts")
    options.add_argument("--quick", action="store_true", help="two rounds of each instead of five")
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rounds = 2 if arguments.quick else 5
    clock, name = clock_and_name(arguments, "extract_speed")
    parts = {
        "forward": lambda: forward(rounds, clock),
        "writing": lambda: writing(rounds),
        "palette": lambda: palette(rounds, clock),
        "reading": lambda: reading(rounds),
    }
    begun, verdicts = time.perf_counter(), list[str]()
    for part in arguments.only or parts:
        record(name, judged(parts[part](), verdicts))
    print(f"\n{torch.get_num_threads()} thread(s), {time.perf_counter() - begun:.0f} s in all", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
