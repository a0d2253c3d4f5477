"""The parity campaign: every picture and every layer that can be tried, against its library's own code.

`python tests/probekit/encoders/parity.py` prints the tables of docs/guides/encoders.md; test_parity.py asserts them.
"""

import contextlib
import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from probekit.encoders.hf_processor import prepare_with
from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError

CPU = torch.device("cpu")


def difference(prepare, normalise, reference) -> float:
    """Largest difference over the odd-sized pictures, in units of float32 values around 1."""
    worst = 0.0
    for picture in odd_pictures():
        ours, theirs = prepare(picture), reference(picture)
        if normalise is not None:
            ours = normalise(ours[None], CPU)[0].numpy()
        if ours.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())))
    return worst


def processors() -> dict[str, tuple[str, float | None]]:
    """Each image processor class of transformers with its defaults: how it is run, and the largest difference."""
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    kinds = {}
    for names in auto.IMAGE_PROCESSOR_MAPPING_NAMES.values():
        for name in [names.get("pil") or names.get("torchvision")]:
            kind = auto.get_image_processor_class_from_name(name)
            if kind is not None:
                kinds[name] = kind
    found: dict[str, tuple[str, float | None]] = {}
    for name, kind in sorted(kinds.items()):
        try:
            processor = kind()
        except Exception as error:
            found[name] = (f"cannot be made: {str(error).strip().splitlines()[0][:80]}", None)
            continue
        try:
            prepare, normalise = prepare_with(processor, name)
        except UserError as error:
            found[name] = (f"refused: {error}", None)
            continue

        def reference(picture, processor=processor):
            made = processor(Image.fromarray(picture), return_tensors="pt")
            return np.asarray(made["pixel_values"][0], np.float32)

        how = "uint8, then scale and shift" if normalise is not None else "the processor's floats"
        found[name] = (how, difference(prepare, normalise, reference))
    return found


def timm_tags(timm) -> dict[str, tuple[str, str, float]]:
    """Each pretrained tag of timm: crop mode, how it is run, and the largest difference; no weights are needed."""
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    from probekit.encoders.timm_models import prepare_with, resolve

    known: dict[str, tuple[str, str, float]] = {}
    found = {}
    for tag in timm.list_pretrained():
        config = get_pretrained_cfg(tag).to_dict()
        resolved = resolve_data_config(pretrained_cfg=config, use_test_size=True)
        key = repr(sorted(resolved.items()))
        if key not in known:
            transform = create_transform(**resolved)
            try:
                prepare, normalise = prepare_with(resolve(config), tag)
            except UserError as error:
                known[key] = (resolved["crop_mode"], f"refused: {error}", float("nan"))
            else:
                how = "uint8, then scale and shift" if normalise is not None else "the transform's floats"
                off = difference(prepare, normalise, lambda picture: transform(Image.fromarray(picture)).numpy())  # noqa: B023
                known[key] = (resolved["crop_mode"], how, off)
        found[tag] = known[key]
    return found


SMALL = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "projection_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("intermediate_size",), 64),
    **dict.fromkeys(("image_size",), 64),
    **dict.fromkeys(("patch_size",), 8),
}


def small_config(kind):
    """A configuration of a transformers class with few and narrow layers, as far as its names tell."""
    default = kind()
    settings = {}
    for name, value in SMALL.items():
        if isinstance(getattr(default, name, None), int):
            settings[name] = value
    for name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes"):
        sizes = getattr(default, name, None)
        if isinstance(sizes, list | tuple) and all(isinstance(s, int) for s in sizes):
            settings[name] = [max(8, s // 16 * 2) for s in sizes]
    for name in ("depths", "num_blocks"):
        depths = getattr(default, name, None)
        if isinstance(depths, list | tuple) and all(isinstance(d, int) for d in depths):
            settings[name] = [1] * len(depths)
    return kind(**settings)


def models() -> dict[str, tuple[int, float | str]]:
    """Each transformers model type with an image processor and hidden states: layers, largest relative difference.

    Small configurations, random weights; every hidden state of a plain forward pass, pooled here, against the encoder.
    """
    import transformers

    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    found: dict[str, tuple[int, float | str]] = {}
    for model_type in sorted({*auto.IMAGE_PROCESSOR_MAPPING_NAMES, *EXTRA_TYPES}):
        sys.stderr.write(f"{model_type}\n")
        try:
            kind = mapping[model_type]
            config = small_config(kind)
        except Exception as error:
            found[model_type] = (0, f"no configuration: {_line(error)}")
            continue
        found[model_type] = _model(transformers, config)
    return found


EXTRA_TYPES = ("clip_vision_model", "siglip_vision_model", "dinov2_with_registers", "dinov3_convnext", "ijepa", "pixio")


def _model(transformers, config):
    from probekit.encoders.hf import HFEncoder

    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters())
        if size > 60e6:
            return 0, f"not built: {size / 1e6:,.0f} million parameters by these settings"
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config).eval()
    except Exception as error:
        return 0, f"not built small: {_line(error)}"
    side = getattr(config, "image_size", None)
    side = side if isinstance(side, int) else 64
    try:
        encoder = HFEncoder(model, None, {"name": "x", "source": "x"}, resolution=side, mean=0.5, std=0.5)
    except UserError as error:
        return 0, f"refused: {error}"
    images = np.stack([encoder.prepare(picture) for picture in odd_pictures()[:2]])
    x = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        output = encoder._forward(encoder.module, x, output_hidden_states=True)
    ours = dict(zip(encoder.layers, encoder(images, np.arange(2)), strict=True))
    worst, states = 0.0, 0
    for name, says in encoder.provenance["hidden_states"].items():
        if not says.startswith("hidden_states["):
            continue
        h = output.hidden_states[int(says[14:].split("]")[0])]
        layout = encoder.provenance["decisions"][name]
        if h.ndim == 4:
            pooled = h.mean((1, 2)) if layout["axes"] == "BHWC" else h.mean((2, 3))
        else:
            pooled = h[:, layout["prefix_tokens"] :].mean(1)
        worst = max(worst, float((ours[name] - pooled).abs().max() / pooled.abs().max()))
        states += 1
    return states, worst


def timm_models(timm) -> dict[str, tuple[str, int, float | str]]:
    """Of each module of timm its smallest model, random weights: every layer against `forward_intermediates`."""
    found: dict[str, tuple[str, int, float | str]] = {}
    hints = "test_ atto femto pico nano xxs xx_small micro tiny mini xs _s small 18 b0".split()  # noqa: SIM905
    for module in timm.list_modules():
        names = list(timm.list_models(module=module))
        names.sort(key=lambda name: next((k for k, hint in enumerate(hints) if hint in name), len(hints)))
        sized = []
        for name in names[:3]:
            with contextlib.suppress(Exception), torch.device("meta"):
                sized.append((sum(p.numel() for p in timm.create_model(name).parameters()), name))
        if not sized or min(sized)[0] > 40e6:
            found[module] = (min(sized)[1] if sized else names[0] if names else "", 0, "not built: no small model")
        else:
            found[module] = _timm_model(timm, min(sized)[1])
        sys.stderr.write(" | ".join(map(str, (module, *found[module]))) + "\n")
    return found


def _timm_model(timm, name: str) -> tuple[str, int, float | str]:
    from probekit.encoders.timm_models import from_timm

    try:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        encoder = from_timm(model, {"name": name, "source": name})
    except UserError as error:
        return name, 0, f"refused: {error}"
    except Exception as error:
        return name, 0, f"{type(error).__name__}: {_line(error)}"
    images = np.stack([encoder.prepare(odd_pictures()[0])])
    ours = encoder(images, np.arange(1))
    try:
        with torch.no_grad():
            maps = model.forward_intermediates(encoder._normalise(images, CPU), intermediates_only=True)
    except Exception as error:
        return name, len(ours), f"no forward_intermediates: {_line(error)}"
    if len(ours) != len(maps):
        return name, len(ours), f"{len(maps)} intermediates"
    worst = 0.0
    for a, b in zip(ours, maps, strict=True):
        pooled = b.mean((2, 3)) if b.ndim == 4 else b.mean(1)
        if a.shape != pooled.shape:
            return name, len(ours), f"widths {a.shape[1]} and {pooled.shape[1]}"
        worst = max(worst, float((a - pooled).abs().max() / pooled.abs().max()))
    return name, len(ours), worst


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import import_timm

    wanted = sys.argv[1:] or ["processors", "timm_tags", "models", "timm_models"]
    for part in wanted:
        needs = inspect.signature(globals()[part]).parameters
        for name, row in globals()[part](*([import_timm()] if needs else [])).items():
            sys.stdout.write(" | ".join(map(str, (part, name, *row))) + "\n")
