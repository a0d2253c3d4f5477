"""Sampling with kept keys and values against recomputing everything for every pixel, as the released sampler does.

`python benchmarks/sample_speed.py [--cpu-time] [--device cuda]`. A 12 x 256 iGPT, 32 x 32 pixels, 512 colours. The
recomputing sampler costs minutes an image, so that it is timed at some lengths of what is drawn so far (its cost at a
pixel is a fixed-size pass over all pixels, or over those so far) and summed over the image. Rows go to
benchmarks/results/sample_speed*.csv.
"""

import numpy as np
import torch
from rows import clock_and_name, parser, record, timed, turns

from igpt_model import IGPT, ModelConfig
from igpt_model.sample import Cache, advance

CONFIG = ModelConfig(n_layer=12, n_embd=256, n_head=8, vocab_size=512, n_positions=1024)


@torch.no_grad()
def cached(model, images, clock, device):
    """Seconds of each of the 1,024 pixels, drawing included."""
    cache = Cache(model, images, CONFIG.n_positions)
    tokens = torch.zeros(images, 1, dtype=torch.long, device=device)
    inputs = model.embed(tokens)  # the start vector
    seconds = []
    for t in range(CONFIG.n_positions):

        def pixel(t=t):
            nonlocal inputs
            drawn = torch.multinomial(advance(model, inputs, cache).softmax(-1), 1)
            if t + 1 < CONFIG.n_positions:
                inputs = model.wte(drawn) + model.wpe.weight[t + 1]

        seconds.append(timed(pixel, device, clock)[0])
    return np.array(seconds)


@torch.no_grad()
def recomputed(model, images, length, clock, device):
    """Seconds of one pixel when the first `length` positions are passed through the model again for it."""
    tokens = torch.randint(0, CONFIG.vocab_size, (images, length), device=device)

    def pixel():
        torch.multinomial(model(tokens)[:, -1].softmax(-1), 1)

    return turns([pixel], 2, clock, device).min()


def measure(images, clock, device):
    """Rates, their ratio, and how the cost of a pixel grows along the image."""
    model = IGPT(CONFIG).eval().to(device)
    cached(model, images, clock, device)
    seconds = cached(model, images, clock, device)
    lengths = np.array([1, 128, 256, 512, 768, 1024])
    again = np.array([recomputed(model, images, int(n), clock, device) for n in lengths])
    so_far = np.interp(np.arange(1, 1025), lengths, again).sum()
    name = f"{images} images"
    yield f"{name}: kept keys and values, s an image", seconds.sum() / images
    yield f"{name}: all 1,024 positions again for each pixel (released), s an image", again[-1] * 1024 / images
    yield f"{name}: the positions so far again for each pixel, s an image", so_far / images
    yield f"{name}: ratio to the released scheme (goal 20)", again[-1] * 1024 / seconds.sum()
    yield f"{name}: ratio to recomputing the positions so far", so_far / seconds.sum()
    first, last = np.median(seconds[64:192]), np.median(seconds[-128:])
    yield f"{name}: cost of a pixel, last eighth to second (flat: 1)", last / first


def main():
    """Measure, print, and append the rows."""
    given = parser(__doc__, "cpu_time", "device").parse_args()
    clock, name = clock_and_name(given, "sample_speed")
    for images in (1, 8) if given.device == "cpu" else (8, 64):
        record(name, measure(images, clock, given.device), given.device)


if __name__ == "__main__":
    main()
