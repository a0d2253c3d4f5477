"""Convert OpenAI's released TensorFlow checkpoints and variables to IGPT.

Names and shapes as in the released code (scope `model/`); D width, H heads, E = D / H, V colours:
`wpe [T, D]`, `wte [V, D]`, `wtet [V, D]`, `sos [D]`, `ln_f/g [D]`, and per block `attn/{q,k,v,c}_proj [H, E, D]`,
`mlp/c_fc/w [D, 4D]`, `mlp/c_proj/w [4D, D]`, `ln_1/g`, `ln_2/g`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from igpt_model.arguments import checked
from igpt_model.config import ModelConfig
from igpt_model.convert.tensor_bundle import bundle_prefix, read_bundle
from igpt_model.errors import UserError, explained
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.palette import Palette

PUBLISHED_LOSSES = {(24, 512): 2.0895, (36, 1024): 2.0614, (48, 1536): 2.0466}
"""Nats per pixel on the ImageNet test arrays at 32 x 32, by (n_layer, n_embd), of the released autoregressive models
after 1,000,000 steps (README of github.com/openai/image-gpt)."""

# ignored variables of a training checkpoint; `clf` is the class head of fine-tuned ones
_NOT_WEIGHTS = ("adam", "global_step", "clf/", "beta1_power", "beta2_power")


@checked
def from_openai(variables: Mapping[str, np.ndarray], causal: bool = True) -> IGPT:
    """Build the IGPT that is equivalent to the released code with these variables.

    Parameters
    ----------
    variables : dict of arrays
        By TensorFlow name, with or without the prefix `model/` and the suffix `:0`; optimizer slots are ignored.
    causal : bool
        False for the BERT checkpoints, whose variables have the same names.
    """
    found = {name.removeprefix("model/").removesuffix(":0"): np.asarray(value) for name, value in variables.items()}
    found = {name: value for name, value in found.items() if not any(word in name.lower() for word in _NOT_WEIGHTS)}
    what = "The variables do not have the shapes and dtypes of an iGPT"
    try:
        with explained(what, "", IndexError, TypeError, ValueError):
            model = _from_variables(found, causal)
    except KeyError as error:
        raise UserError(f"These are not variables of OpenAI's iGPT: {error} is missing.") from None
    if unknown := sorted(found.keys() - {"sos"}):
        raise UserError(f"These are not variables of OpenAI's iGPT: unknown are {', '.join(unknown[:6])}.")
    return model


def _from_variables(found: dict[str, np.ndarray], causal: bool) -> IGPT:
    """Build the model; the variables that it takes are removed from `found`."""
    n_layer = len({match[0] for match in map(re.compile(r"h\d+/").match, found) if match})
    (n_positions, d), heads = found["wpe"].shape, found["h0/attn/q_proj"].shape[0]
    config = ModelConfig(n_layer, d, heads, len(found["wte"]), n_positions, causal)
    state = {
        "wte.weight": found.pop("wte"),
        "wpe.weight": found.pop("wpe"),
        "ln_f.g": found.pop("ln_f/g"),
        "head.weight": found.pop("wtet"),
    }
    if causal:
        state["sos"] = found.pop("sos").reshape(d)
    for i in range(n_layer):
        # rows (h, e) are outputs of q, k and v (`bsf,hef->bhse`), but inputs of the last projection (`bhse,hef->bsf`)
        q, k, v, c = (found.pop(f"h{i}/attn/{part}_proj").reshape(d, d) for part in "qkvc")
        state[f"h.{i}.attn.c_attn.weight"], state[f"h.{i}.attn.c_proj.weight"] = np.concatenate([q, k, v]), c.T
        state[f"h.{i}.mlp.c_fc.weight"] = found.pop(f"h{i}/mlp/c_fc/w").reshape(d, 4 * d).T
        state[f"h.{i}.mlp.c_proj.weight"] = found.pop(f"h{i}/mlp/c_proj/w").reshape(4 * d, d).T
        for norm in ("ln_1", "ln_2"):
            state[f"h.{i}.{norm}.g"] = found.pop(f"h{i}/{norm}/g")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    return IGPT.from_state(config, tensors, "The variables")


@checked
def from_openai_checkpoint(
    path: str | Path, palette_file: str | Path | None = None, causal: bool = True
) -> tuple[IGPT, Palette | None, ImageTransform]:
    """Read a TensorFlow checkpoint released by OpenAI, without TensorFlow; checks the checksum of every tensor.

    Parameters
    ----------
    path : the checkpoint's prefix (`.../model.ckpt-1000000`), its `.index`, or a folder with this checkpoint only
    palette_file : `kmeans_centers.npy`, (V, 3) in [-1, 1]; by default the file of this name next to the checkpoint
    causal : False for the BERT checkpoints

    Returns
    -------
    model, palette (None if there is none), transform
        Images at the model's resolution; OpenAI's resize kernel is not published, so bilinear is our choice.
    """
    prefix = bundle_prefix(path)
    variables = read_bundle(prefix, lambda name: not any(word in name.lower() for word in _NOT_WEIGHTS))
    try:
        model = from_openai(variables, causal=causal)
    except UserError as error:
        raise UserError(f"{prefix}: {error}") from error
    file = Path(palette_file) if palette_file is not None else prefix.with_name("kmeans_centers.npy")
    absent = palette_file is None and not file.is_file()
    palette = None if absent else Palette.load(file)
    if palette is not None and len(palette) != model.config.vocab_size:
        raise UserError(
            f"{file} has {len(palette)} colours, but the model has {model.config.vocab_size} colours; give OpenAI's "
            "kmeans_centers.npy."
        )
    return model, palette, ImageTransform(model.config.side)


def what_to_expect(config: ModelConfig) -> str:
    """Return a sentence with the published test loss of a model of this size."""
    published = PUBLISHED_LOSSES.get((config.n_layer, config.n_embd)) if config.causal else None
    if published is None:
        return "no test loss is published for a model of this size and objective"
    return (
        f"published test loss after 1,000,000 steps: {published} nats per pixel ({published / np.log(2):.4f} bits) "
        "on OpenAI's ImageNet test arrays"
    )
