"""Convert Hugging Face's ImageGPT, models and folders, to IGPT and back.

Hugging Face stores the start vector as the last row of `wte` (V + 1 rows for V colours), linear weights as (in, out),
and biases, which are zero in the published weights.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from igpt_model.arguments import checked
from igpt_model.atomic import new_folder, write_json
from igpt_model.checked_json import Int, Real, Text, read_json
from igpt_model.config import ModelConfig
from igpt_model.devices import is_plain
from igpt_model.errors import UserError, explained, first_line
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.palette import Palette

if TYPE_CHECKING:
    from transformers import ImageGPTForCausalImageModeling

# a block's linear layers have the same names in Hugging Face
_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_PROCESSOR = {"clusters?": ([[Real(-1.001, 1.001)]], None), "resample?": Int(0, 5)}
# settings of a Hugging Face configuration that iGPT requires
_FIXED = {
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def _pairs(n_layer: int) -> Iterator[tuple[str, str, bool]]:
    """Yield our name, theirs, and whether the matrix is transposed, for each pair of parameters."""
    yield "wpe.weight", "wpe.weight", False
    yield "ln_f.g", "ln_f.weight", False
    for i in range(n_layer):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{i}.{norm}.g", f"h.{i}.{norm}.weight", False
        for layer in _LINEAR:
            yield f"h.{i}.{layer}.weight", f"h.{i}.{layer}.weight", True
            yield f"h.{i}.{layer}.bias", f"h.{i}.{layer}.bias", False


def from_huggingface(hf_model: Any) -> IGPT:
    """Return an IGPT with a float32 copy of the weights of a Hugging Face ImageGPT model.

    Parameters
    ----------
    hf_model : transformers.ImageGPTForCausalImageModeling, ImageGPTModel or ImageGPTForImageClassification
        The last two have no output matrix, which stays zero, so they are only useful for features.

    Raises
    ------
    UserError
        The model differs from iGPT, for example in its activation.
    """
    name = type(hf_model).__name__
    with explained(f"A {name} was given, not a Hugging Face ImageGPT model", "", AttributeError):
        state, config = hf_model.state_dict(), hf_model.config.to_dict()
    return _from_state(state, config, name)


@checked
def to_huggingface(model: IGPT) -> "ImageGPTForCausalImageModeling":
    """Return the same model as a `transformers.ImageGPTForCausalImageModeling` in evaluation mode.

    Hugging Face's features and loss differ from training's unless the start token (id V) is put in front of the pixels.
    """
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    config = model.config
    if not config.causal:
        raise UserError("Hugging Face's ImageGPT is autoregressive only, so a BERT model cannot be written as one.")
    sizes: dict[str, Any] = {name: getattr(config, name) for name in ("n_positions", "n_embd", "n_layer", "n_head")}
    sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    hf_config = ImageGPTConfig(vocab_size=config.vocab_size + 1, **sizes)
    ours = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    state = {
        "transformer.wte.weight": torch.cat([ours["wte.weight"], ours["sos"][None]]),
        "lm_head.weight": ours["head.weight"],
    }
    for own, theirs, transposed in _pairs(config.n_layer):
        value = ours[own] if own in ours else torch.zeros(len(ours[own.replace(".bias", ".weight")]))
        state[f"transformer.{theirs}"] = value.T if transposed else value
    with torch.random.fork_rng(devices=[]):  # Hugging Face initialises weights that are overwritten immediately
        hf_model = ImageGPTForCausalImageModeling(hf_config)
    hf_model.load_state_dict(state)
    return hf_model.eval()


@checked
def from_pretrained_folder(path: str | Path) -> tuple[IGPT, Palette | None, ImageTransform | None]:
    """Read a folder written by Hugging Face's `save_pretrained`, without transformers.

    Reads `config.json`, the weights (`model.safetensors` or `pytorch_model.bin`, whole or in shards; the latter without
    unpickling code) and, if there, the colour clusters and resize kernel of `preprocessor_config.json`.

    Returns
    -------
    model : IGPT
    palette : Palette or None
    transform : ImageTransform or None
        At the model's resolution, regardless of the processor's default.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} contains no config.json; give a folder written by Hugging Face's save_pretrained.")
    config = read_json(folder / "config.json", {"n_head": Int(1, 65_536)})
    model = _from_state(_read_weights(folder), config, str(folder))
    processor_file = folder / "preprocessor_config.json"
    if not processor_file.is_file():
        return model, None, None
    processor = read_json(processor_file, _PROCESSOR)
    clusters = processor.get("clusters")
    palette = None if clusters is None else Palette(clusters)
    if palette is not None and len(palette) != model.config.vocab_size:
        raise UserError(
            f"{processor_file} has {len(palette)} colour clusters, but the model has {model.config.vocab_size} colours."
        )
    kernel = Image.Resampling(processor.get("resample", 2)).name.lower()
    return model, palette, ImageTransform(model.config.side, kernel)


@checked
def to_pretrained_folder(
    path: str | Path, model: IGPT, palette: Palette | None = None, transform: ImageTransform | None = None
) -> None:
    """Write a new folder for Hugging Face's `from_pretrained` and our `from_pretrained_folder`.

    Raises
    ------
    UserError
        `path` already exists with different contents.
    """
    with new_folder(path) as partial:
        to_huggingface(model).save_pretrained(partial)
        if palette is not None:
            transform = transform or ImageTransform(model.config.side)
            processor = {
                "image_processor_type": "ImageGPTImageProcessor",
                "clusters": palette.centres_V3.tolist(),
                "do_color_quantize": True,
                "do_normalize": True,
                "do_resize": True,
                "resample": int(Image.Resampling[transform.resize.upper()]),
                "size": {"height": transform.resolution, "width": transform.resolution},
            }
            write_json(partial / "preprocessor_config.json", processor)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    for name in ("model.safetensors", "pytorch_model.bin"):
        shards = [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index, {"weight_map": {str: Text(255, file_name=True)}})["weight_map"]
            shards = sorted({folder / shard for shard in listed.values()})
        if not all(shard.is_file() for shard in shards):
            continue
        state: dict[str, Tensor] = {}
        for shard in shards:
            safe = shard.suffix == ".safetensors"
            try:
                content = load_file(shard) if safe else torch.load(shard, map_location="cpu", weights_only=True)
                if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
                    raise TypeError("it contains no named tensors")
            except Exception as error:  # PyTorch's restricted unpickler raises many types of errors for damaged pickles
                raise UserError(
                    f"{shard} is damaged or contains objects other than tensors, so it is not opened "
                    f"({first_line(error)}): download it again."
                ) from error
            state |= content
        return state
    raise UserError(f"{folder} contains neither model.safetensors nor pytorch_model.bin (nor all of their shards).")


def _from_state(hf_state: Mapping[str, Tensor], hf_config: Mapping[str, Any], source: str) -> IGPT:
    for name, needed in _FIXED.items():
        if hf_config.get(name, needed) != needed:
            raise UserError(
                f"{source} has {name} = {hf_config[name]!r}, but iGPT needs {needed!r}; give an ImageGPT model."
            )
    state = {name.removeprefix("transformer."): value for name, value in hf_state.items()}
    # `score` is a classification head; the others are causal masks that old releases stored
    dropped = (".attn.bias", ".attn.masked_bias")
    state = {
        name: value for name, value in state.items() if not name.startswith("score.") and not name.endswith(dropped)
    }
    n_layer = len({match[0] for match in map(re.compile(r"h\.\d+\.").match, state) if match})
    expected = {"wte.weight", *(theirs for _, theirs, _ in _pairs(n_layer))}
    wrong = sorted(expected ^ (set(state) - {"lm_head.weight"}))
    if wrong or not n_layer:
        raise UserError(
            f"{source} is not a Hugging Face ImageGPT model; missing or unknown tensors: {', '.join(wrong[:6])}."
        )
    axes = {theirs: 1 + matrix for _, theirs, matrix in _pairs(n_layer)}
    axes |= dict.fromkeys(("wte.weight", "wpe.weight", "lm_head.weight"), 2)
    if odd := [name for name, value in state.items() if not is_plain(value) or value.ndim != axes[name]]:
        raise UserError(f"{source}: {odd[0]} is not a dense {axes[odd[0]]}-axis tensor; save the model's state_dict().")
    rows, width = state["wte.weight"].shape
    biased = any(bool(value.any()) for name, value in state.items() if name.endswith(".bias"))
    config = ModelConfig(
        n_layer, width, int(hf_config["n_head"]), rows - 1, len(state["wpe.weight"]), causal=True, bias=biased
    )
    head = state.get("lm_head.weight", torch.zeros(rows - 1, width))
    ours = {"wte.weight": state["wte.weight"][:-1], "sos": state["wte.weight"][-1], "head.weight": head}
    for own, theirs, transposed in _pairs(n_layer):
        if biased or not own.endswith(".bias"):
            ours[own] = state[theirs].T if transposed else state[theirs]
    return IGPT.from_state(config, ours, source)
