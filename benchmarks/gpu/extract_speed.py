"""Extraction of iGPT-S at 1,024 tokens on a GPU: `python benchmarks/gpu/extract_speed.py [PART ...] [--run RUN]`.

Parts, in order of worth:
- forward: every layer's pooled features in bfloat16, plain and with compiled blocks, in batches of several sizes,
  against Hugging Face's (all hidden states pooled): its ImageGPT, which has eager attention alone, in float32 and in
  bfloat16, and its GPT-2 of the same sizes with SDPA in bfloat16; and against a matrix product's rate in bfloat16.
  Operations are counted with full attention, as everywhere here; the GPU computes only half of it, and the row "causal
  attention counted" says what share that makes.
- writing: `extract` from pictures to the file, against the same without a file, in turns; by wall time.
- trace: a few batches of `extract` under torch.profiler, saved as extract_trace.json.gz (https://ui.perfetto.dev), with
  the share of each step that ran while the GPU computed.
- formats: what bfloat16, TF32 and float16 storage do to features and probe accuracy, of `--run` on the packed pictures
  of `--data` (cifar10_tokens.py), or of the run that comes with the demo.

Pictures are squares of scikit-learn's photographs; weights are drawn. Rows go to
benchmarks/results/gpu/extract_speed.csv.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
import number_formats
from extract_speed import body_flops, hugging_face
from gpu.cifar10_tokens import load
from gpu.overlap import Spans, Watched, shares, traced, watched
from gpu.parts import command_line, read, run, timed
from gpu.pictures import photographs
from rows import RESULTS
from train_speed import product

from igpt_model import IGPT, ImageTransform, ModelConfig, Palette, encode
from probekit import extract, load_dataset
from probekit.encoders.igpt import IGPTEncoder
from probekit.features.decode import prepared_batches
from probekit.features.transfer import Transfer

PARTS = ("forward", "writing", "trace", "formats")


def sizes(toy):
    """The model, batches to try, the peer's batch, pictures to write, seconds a variant."""
    if toy:
        config = ModelConfig(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=64)
        return config, (4, 8), 4, 24, 0.05
    return ModelConfig.preset("S"), (16, 64, 128, 256), 16, 6144, 2.0


def best_of(action, device, seconds):
    """The best time of a call, over as many as fit the seconds (three at least) after a first one."""
    action()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        times.append(timed(action, device)[0])
    return min(times)


def ours(config, device, compiled):
    """The encoder in bfloat16."""
    palette = Palette.rgb_grid(config.vocab_size)
    prepare = ImageTransform(config.side)
    return IGPTEncoder(IGPT(config), palette, prepare, device=device, dtype="bfloat16", compile=compiled)


def forward(toy, device, compiled_too, only):
    """Rows of the bare forward pass; with `only` at these batches, and without the peers."""
    config, batches, peer_batch, _, seconds = sizes(toy)
    batches = only or batches
    multiply, operations = product(device, "bfloat16", 256 if toy else None)
    rate = operations / best_of(multiply, device, seconds)
    yield "matmul rate in bfloat16, TFLOP/s", rate / 1e12
    best = (0.0, "")
    for compiled in (False, True) if compiled_too else (False,):
        model = ours(config, device, compiled).model
        for batch in batches if not (toy and compiled) else batches[:1]:
            tokens = torch.randint(0, config.vocab_size, (batch, config.n_positions), device=device)

            def features(model=model, tokens=tokens):
                with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
                    return encode(model, tokens)

            name = f"{'compiled' if compiled else 'plain'}, batch {batch}"
            speed = batch / best_of(features, device, seconds)
            yield f"bfloat16, {name}: images/s", speed
            yield f"bfloat16, {name}: share of the matmul rate (goal 0.55)", speed * body_flops(config) / rate
            best = max(best, (speed, name))
    print(f"    best: {best[1]}", flush=True)
    halved = body_flops(config) - 2 * config.n_positions**2 * config.n_embd * config.n_layer
    yield "best: images/s", best[0]
    yield "best: share of the matmul rate (goal 0.55)", best[0] * body_flops(config) / rate
    yield "best: share of the matmul rate, causal attention counted", best[0] * halved / rate
    if only:
        return
    tokens = torch.randint(0, config.vocab_size, (peer_batch, config.n_positions), device=device)
    wide = IGPT(config).to(device).eval()
    with torch.inference_mode():
        mine = peer_batch / best_of(lambda: encode(wide, tokens), device, seconds)
    yield f"float32, plain, batch {peer_batch}: images/s", mine
    half = torch.bfloat16
    for name, attention, dtype in (("eager", False, torch.float32), ("eager", False, half), ("GPT-2 SDPA", True, half)):
        # the float32 peer is measured at its own batch; the others at the one that is best of two
        speeds = []
        for batch in (peer_batch,) if dtype == torch.float32 else (peer_batch, 4 * peer_batch):
            given = torch.randint(0, config.vocab_size, (batch, config.n_positions), device=device)
            theirs = hugging_face(config, device, attention, dtype)
            speeds.append(batch / best_of(partial(theirs, given), device, seconds))
        peer, what = max(speeds), f"HF {name} {str(dtype).removeprefix('torch.')}"
        yield f"{what}, batch {peer_batch} or more: images/s", peer
        goal = " (goal 10)" if dtype == torch.float32 else ""
        yield f"best to {what}{goal}", best[0] / peer
        if dtype == torch.float32:
            yield "ours in float32 to HF eager float32", mine / peer


def pictures(config, n):
    """A data set of photographs' squares in the model's size."""
    return load_dataset(photographs(n, config.side), name="photographs")


def without_file(encoder, data, batch):
    """What `extract` does but writing: read, compute, bring the features to the host."""
    for part in data.splits.values():
        rows = [("all", i, slice(i, min(i + batch, len(part)))) for i in range(0, len(part), batch)]
        waiting = None
        with torch.inference_mode():
            for made in prepared_batches({"all": part}, encoder.prepare, rows, 0):
                features = Transfer(encoder(made.images, made.row_ids))
                if waiting is not None:
                    waiting.arrays()
                waiting = features
        if waiting is not None:
            waiting.arrays()


def writing(toy, device, compiled):
    """Rows of extraction with and without its file."""
    config, batches, _, n, _ = sizes(toy)
    encoder, data, batch = ours(config, device, compiled), pictures(config, n), batches[-2]
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(100))

        def written(dtype):
            extract(encoder, data, Path(folder) / f"{next(numbers)}.h5", batch_size=batch, dtype=dtype)

        def bare():
            without_file(encoder, data, batch)

        actions = {"no file": bare, "float32": partial(written, "float32"), "float16": partial(written, "float16")}
        bare()  # colours are looked up and kernels compiled
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(3):
            for name, action in actions.items():
                seconds[name].append(timed(action, device)[0])
        best = {name: min(times) for name, times in seconds.items()}
    what = f"batch {batch}, {n} pictures:"
    for name, took in best.items():
        yield f"{what} {name}, images/s", n / took
    yield f"{what} cost of writing float32 (goal at most 0.05)", best["float32"] / best["no file"] - 1
    yield f"{what} cost of writing float16", best["float16"] / best["no file"] - 1


def trace(toy, device, compiled):
    """Rows of what overlapped."""
    config, batches, _, _, _ = sizes(toy)
    encoder, batch = ours(config, device, compiled), batches[-2]
    data, spans = pictures(config, 12 * batch), Spans()
    path = RESULTS / "gpu" / ("extract_trace_toy.json.gz" if toy else "extract_trace.json.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        extract(encoder, data, Path(folder) / "first.h5", batch_size=batch)
        with watched(spans):

            def work():
                extract(Watched(encoder, spans), data, Path(folder) / "second.h5", batch_size=batch)

            gpu = traced(work, spans, device, path)
    yield from shares(spans, gpu)


def formats(toy, device, weights, packed):
    """Rows of number formats; the network that comes with the demo unless another one and its data are named."""
    limit, n_layers = (60, 1) if toy else (None, 3)
    if packed is None:
        yield from number_formats.measures(
            weights or number_formats.SHIPPED, "wandering-digits", device, n_layers, limit
        )
        return
    # float32 takes 15 times as long as bfloat16: few pictures
    yield from number_formats.measures(weights, load(packed)[0], device, n_layers, limit or 2_000)


def main():
    """Measure the parts."""
    parser = command_line(__doc__, PARTS)
    parser.add_argument("--run", help="for formats: a run folder of training")
    parser.add_argument("--data", type=Path, help="for formats: the folder of packed pictures it was trained on")
    parser.add_argument("--compile", choices=["yes", "no"], help="blocks of ours; yes on cuda unless told otherwise")
    parser.add_argument("--batches", type=int, nargs="+", help="for forward: these alone, and no peers")
    given = read(parser, PARTS)
    compiled = given.compile == "yes" or (given.compile is None and given.device == "cuda")
    if (given.run is None) != (given.data is None):
        parser.error("--run and --data belong together: a network and the pictures to probe it on")
    work = {
        "forward": partial(forward, given.toy, given.device, compiled, given.batches),
        "writing": partial(writing, given.toy, given.device, compiled),
        "trace": partial(trace, given.toy, given.device, compiled),
        "formats": partial(formats, given.toy, given.device, given.run, given.data),
    }
    return run("gpu/extract_speed", work, given)


if __name__ == "__main__":
    sys.exit(main())
