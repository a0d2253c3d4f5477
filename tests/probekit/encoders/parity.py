"""The parity campaign: every picture and every layer that can be tried, against its library's own code.

    python tests/probekit/encoders/parity.py processors timm_tags models timm_models --out parity.jsonl

writes one line of JSON a processor, tag or model as it goes, and run again leaves out what the file holds already;
`--page` writes docs/reference/parity.md from it. test_parity.py asserts them.

Everything is seeded. Models are random and small: `SHRINK` makes their configurations so by rules that know no class.
"""

import argparse
import importlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from probekit.encoders.hf_processor import prepare_with
from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError

CPU = torch.device("cpu")
# a model that takes longer is recorded as not run
SECONDS = 600


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


def processors() -> Iterator[tuple[str, dict]]:
    """Each image processor class of transformers with its defaults: how it is run, and the largest difference."""
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    names = {name for pair in auto.IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in pair.values() if name}
    for name in sorted(names):
        yield name, {"run": lambda name=name: _processor(name, auto.get_image_processor_class_from_name(name))}


def _processor(name: str, kind) -> dict:
    try:
        processor = kind()
    except Exception as error:
        return {"why": f"cannot be made without arguments: {_line(error)}"}
    try:
        prepare, normalise = prepare_with(processor, name)
    except UserError as error:
        return {"why": f"refused: {error}"}

    def reference(picture):
        made = processor(Image.fromarray(picture), return_tensors="pt")
        return np.asarray(made["pixel_values"][0], np.float32)

    how = "uint8, then scale and shift" if normalise is not None else "the processor's floats"
    return {"how": how, "difference": difference(prepare, normalise, reference)}


def timm_tags() -> Iterator[tuple[str, dict]]:
    """Each pretrained tag of timm: crop mode, how it is run, and the largest difference; no weights are needed."""
    import timm
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    known: dict[str, dict] = {}
    for tag in timm.list_pretrained():
        config = get_pretrained_cfg(tag).to_dict()
        resolved = resolve_data_config(pretrained_cfg=config, use_test_size=True)
        key = repr(sorted(resolved.items()))
        yield tag, {"run": lambda tag=tag, c=config, r=resolved, key=key: _timm_tag(tag, c, r, known, key)}


def _timm_tag(tag: str, config, resolved, known: dict[str, dict], key: str) -> dict:
    from timm.data import create_transform

    from probekit.encoders.timm_models import prepare_with, resolve

    if key not in known:
        transform = create_transform(**resolved)
        known[key] = {"crop": resolved["crop_mode"]}
        try:
            prepare, normalise = prepare_with(resolve(config), tag)
        except UserError as error:
            known[key] |= {"why": f"refused: {error}"}
        else:
            how = "uint8, then scale and shift" if normalise is not None else "the transform's floats"
            off = difference(prepare, normalise, lambda picture: transform(Image.fromarray(picture)).numpy())
            known[key] |= {"how": how, "difference": off}
    return known[key]


# (widths are divided by this, layers are at most that); the first that runs is taken. No class is known by name: heads
# keep their number, so widths that heads divide stay divisible, and a stage keeps its proportion to the next.
SHRINK = ((8, 2), (8, None), (4, 2), (4, None), (2, 2), (1, 2), (1, None))
WIDTHS = re.compile(r"(hidden|embed|_dim|^dim|^dims|width|channels|d_model|intermediate|ffn|inner|_size$|_sizes$)")
NO_WIDTH = re.compile(
    r"(num_channels|in_chan|image|patch|kernel|window|stride|input_size|vocab|type_vocab|grid|pool|tile|crop|batch|"
    r"spatial|temporal|chunk|memory|queue|group_size|scale|output_size|max_|frames|_size_ratio|size_divisor)"
)
LAYERS = re.compile(
    r"(^num_(hidden_)?layers$|num_hidden_layers|^depths?$|^layers$|_layers$|^num_blocks$|block_repeats|experts$)"
)
MOST_PARAMETERS = 120e6
MOST_SIDE = 256


def _shrunk(kind, factor: int, layers: int | None):
    """A configuration of a transformers class, narrower and shallower by the rules above, its parts likewise."""
    default = kind()
    settings = {}
    for name, value in vars(default).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            settings[name] = _shrunk(type(value), factor, layers)
            continue
        numbers = value if isinstance(value, list | tuple) else [value]
        if not numbers or not all(type(v) is int for v in numbers):
            continue
        if layers is not None and LAYERS.search(name):
            made = [min(v, layers) for v in numbers]
        elif name == "image_size":
            made = [min(v, MOST_SIDE) for v in numbers]
        elif WIDTHS.search(name) and not NO_WIDTH.search(name) and min(numbers) >= 8:
            made = [v // factor if v % factor == 0 and v // factor >= 4 else v for v in numbers]
        else:
            continue
        settings[name] = type(value)(made) if isinstance(value, list | tuple) else made[0]
    return kind(**settings)


def models() -> Iterator[tuple[str, dict]]:
    """Each transformers model type that sees pictures: layers, largest difference of a hidden state.

    Every hidden state of a plain forward pass, pooled here, against the encoder.
    """
    import transformers

    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    images = importlib.import_module("transformers.models.auto.image_processing_auto")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    types = {*images.IMAGE_PROCESSOR_MAPPING_NAMES, *EXTRA_TYPES}
    for name in dir(auto):
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES") and IMAGE_TASKS.search(name):
            types |= set(getattr(auto, name)) & set(auto.MODEL_MAPPING_NAMES)
    for model_type in sorted(types):
        yield model_type, {"run": lambda t=model_type: _model(transformers, mapping, t)}


IMAGE_TASKS = re.compile("IMAGE_CLASSIFICATION|MASKED_IMAGE|BACKBONE|OBJECT_DETECTION|SEGMENTATION|DEPTH|IMAGE_MAPPING")
EXTRA_TYPES = ("clip_vision_model", "siglip_vision_model", "dinov2_with_registers", "dinov3_convnext", "ijepa", "pixio")


def _model(transformers, mapping, model_type: str) -> dict:
    reasons: list[str] = []
    for factor, layers in SHRINK:
        try:
            config = _shrunk(mapping[model_type], factor, layers)
            with torch.device("meta"):
                model = transformers.AutoModel.from_config(config)
            size = sum(p.numel() for p in model.parameters())
        except Exception as error:
            reasons.append(f"not built: {_line(error)}")
            continue
        if size > MOST_PARAMETERS:
            reasons.append(f"not built: {size / 1e6:,.0f} million parameters")
            continue
        try:
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config).eval()
            return _layers_of(model, config) | {"million": round(size / 1e6, 1)}
        except UserError as error:
            reasons.append(f"refused: {error}")
        except Exception as error:
            reasons.append(f"not built: {type(error).__name__}: {_line(error)}")
    # what the least shrunk configuration that ran says is the model's own; of those that did not run, the smallest's
    refused = [reason for reason in reasons if reason.startswith("refused")]
    return {"why": refused[-1] if refused else reasons[0]}


def _side(config) -> int:
    for part in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        side = getattr(part, "image_size", None)
        side = side[0] if isinstance(side, list | tuple) and side else side
        if isinstance(side, int):
            return side
    return 224


def _layers_of(model, config) -> dict:
    from probekit.encoders.hf import from_transformers

    side = _side(config)
    encoder = from_transformers(model, None, {"name": "x", "source": "x"}, resolution=side, mean=0.5, std=0.5)
    images = np.stack([encoder.prepare(picture) for picture in odd_pictures()[:2]])
    x = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        output = encoder._forward(encoder.module, x, output_hidden_states=True)
    ours = dict(zip(encoder.layers, encoder(images, np.arange(2)), strict=True))
    patch = getattr(encoder.module.config, "patch_size", None)
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
    found = {"layers": states, "difference": worst, "positions": layout["positions"]}
    return found | ({"patches": (side // patch) ** 2} if isinstance(patch, int) else {})


HINTS = "test_ atto femto pico nano xxs xx_small micro tiny mini xs _s small 18 b0".split()  # noqa: SIM905
MOST_TIMM = 320e6


def timm_models() -> Iterator[tuple[str, dict]]:
    """Of each module of timm its smallest model, random weights: every layer against `forward_intermediates`."""
    import timm

    for module in timm.list_modules():
        yield module, {"run": lambda module=module: _timm_module(timm, module)}


def _timm_module(timm, module: str) -> dict:
    names = list(timm.list_models(module=module))
    names.sort(key=lambda name: next((k for k, hint in enumerate(HINTS) if hint in name), len(HINTS)))
    sized, why = [], "no model of this module can be made"
    for name in names[:8]:
        try:
            with torch.device("meta"):
                sized.append((sum(p.numel() for p in timm.create_model(name).parameters()), name))
        except Exception as error:
            why = _line(error)
    if not sized:  # a constructor that computes with its tensors cannot be made on the meta device
        sized = [(0, name) for name in names[:1]]
    if not sized:
        return {"why": f"not built: {why}"}
    size, name = min(sized)
    if size > MOST_TIMM:
        return {"model": name, "why": f"not built: {size / 1e6:,.0f} million parameters"}
    return {"model": name} | _timm_model(timm, name)


def _timm_model(timm, name: str) -> dict:
    from probekit.encoders.timm_models import from_timm

    try:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
    except Exception as error:
        return {"why": f"not built: {type(error).__name__}: {_line(error)}"}
    side = (getattr(model, "pretrained_cfg", {}).get("input_size") or [0])[-1]
    # thousands of positions take hours; a model that says that it takes every size is run at a smaller one
    any_size = any(getattr(part, "strict_img_size", True) is False for part in model.modules())
    try:
        smaller = {"resolution": MOST_SIDE} if any_size and side > MOST_SIDE else {}
        encoder = from_timm(model, {"name": name, "source": name}, **smaller)
    except UserError as error:
        return {"why": f"refused: {error}"}
    images = np.stack([encoder.prepare(odd_pictures()[0])])
    ours = encoder(images, np.arange(1))
    try:
        with torch.no_grad():
            maps = model.forward_intermediates(encoder._normalise(images, CPU), intermediates_only=True)
    except Exception as error:
        return {"why": f"timm gives nothing to compare with: {_line(error)}", "layers": len(ours)}
    maps = maps[-len(ours) :]  # TResNet gives its stem too
    if len(ours) != len(maps):
        return {"why": f"timm gives {len(maps)} intermediates, here are {len(ours)} layers", "layers": len(ours)}
    worst = 0.0
    for a, b in zip(ours, maps, strict=True):
        pooled = b.mean((2, 3)) if b.ndim == 4 else b.mean(1)
        if a.shape != pooled.shape:
            return {"why": f"widths {a.shape[1]} and {pooled.shape[1]}", "layers": len(ours)}
        worst = max(worst, float((a - pooled).abs().max() / pooled.abs().max()))
    return {"layers": len(ours), "difference": worst}


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


class TooLong(BaseException):
    """No Exception, which an encoder would take for one of the model's."""


def _too_long(*_):
    raise TooLong(f"longer than {SECONDS} seconds")


def campaign(part: str, out: Path, names: list[str] | None = None) -> dict[str, dict]:
    """Rows of one part by name: those that `out` holds, and the others, which are appended to it as they are made."""
    lines = out.read_text().splitlines() if out.exists() else []
    found = {row["name"]: row for row in map(json.loads, lines) if row["part"] == part}
    signal.signal(signal.SIGALRM, _too_long)
    with open(out, "a") as file:
        for name, work in globals()[part]():
            if name in found or (names and name not in names):
                continue
            signal.alarm(SECONDS)
            try:
                row = work["run"]()
            except TooLong as error:
                row = {"why": f"not run: {error}"}
            except Exception as error:  # a traceback of ours is a finding
                row = {"error": f"{type(error).__name__}: {_line(error)}"}
            finally:
                signal.alarm(0)
            found[name] = {"part": part, "name": name, **row}
            file.write(json.dumps(found[name]) + "\n")
            file.flush()
            sys.stderr.write(f"{found[name]}\n")
    return found


TITLES = {
    "processors": "Image processors of transformers, with their defaults",
    "timm_tags": "Pretrained tags of timm: the evaluation transform",
    "models": "Model types of transformers, small and random: every hidden state",
    "timm_models": "Modules of timm, the smallest model of each, random: every layer",
}


HEAD = """# Parity

Largest differences between what probekit computes and the library's own code. This page is written by `tests/probekit/encoders/parity.py` (a slow test, `test_parity.py`);
Python {python}, torch {torch} on a CPU, transformers {transformers}, timm {timm}, torchvision {torchvision}, {date}. Everything is seeded; no weights are downloaded.

- **Images**: four seeded images of 301 x 453, 453 x 301, 61 x 97 and 233 x 233, prepared by the encoder and by the library; the difference is that of the finished values, over the largest of them.
  Both versions of each transformers class (Pillow and torchvision) are compared.
- **Layers**: a random model, shrunk by general rules (widths divided by 8, 4, 2 or 1; at most two layers; images of at most 256), run by the encoder and by a plain forward pass
  (`output_hidden_states`, `forward_intermediates`); the difference is that of the pooled features, over the largest of them.
- **Refused** means one sentence from the encoder instead of features; **not built** means that transformers or timm could not build the model without further settings, or not below 120 million (timm: 320 million) parameters.
"""  # noqa: E501


def page(out: Path) -> str:
    """The page of docs/reference as Markdown: a summary, each largest difference, and why others were not run."""
    # a row that was made twice counts once, as it was made last
    rows = list({(row["part"], row["name"]): row for row in map(json.loads, out.read_text().splitlines())}.values())
    titles = {part: heading for part, heading in TITLES.items() if any(row["part"] == part for row in rows)}
    versions = {name: version(name).partition("+")[0] for name in ("torch", "transformers", "timm", "torchvision")}
    python = ".".join(map(str, sys.version_info[:2]))
    head = HEAD.format(python=python, date=date.fromtimestamp(out.stat().st_mtime), **versions)
    text = [head, "| compared | run | largest difference | refused | not built |", "|---|---|---|---|---|"]
    for part, heading in titles.items():
        own = [row for row in rows if row["part"] == part]
        ran = [row["difference"] for row in own if "difference" in row]
        refused = sum(row.get("why", "").startswith("refused") for row in own)
        counts = f"{len(ran):,} of {len(own):,} | {max(ran):.1e} | {refused} | {len(own) - len(ran) - refused}"
        text.append(f"| {heading} | {counts} |")
    for part, heading in titles.items():
        own = sorted((row for row in rows if row["part"] == part), key=lambda row: row["name"])
        ran = [row for row in own if "difference" in row]
        text += ["", f"## {heading}", ""]
        if part == "timm_tags":
            crops = {crop: sum(row["crop"] == crop for row in ran) for crop in ("center", "squash", "border")}
            text.append(
                f"All {len(ran):,} agree to the bit: {', '.join(f'{n:,} {crop}' for crop, n in crops.items())}."
            )
            continue
        text += ["| name | run as | largest difference |", "|---|---|---|"]
        for row in ran:
            how = row.get("how") or f"{row['layers']} layers" + (f" of {row['model']}" if "model" in row else "")
            text.append(f"| {row['name']} | {how} | {row['difference']:.1e} |")
        text += ["", "| not run | why |", "|---|---|"]
        for row in own:
            if "difference" not in row:
                why = (row.get("why") or row.get("error", "")).split(" (it has ")[0].split("; ")[0]
                text.append(f"| {row['name']} | {why.replace('|', ' ')[:170]} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=list(TITLES), metavar="PART")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import import_timm

    import_timm(stay=True)  # before transformers, which looks for torchvision once
    for part in asked.parts:
        campaign(part, asked.out, asked.names)
    if asked.page:
        asked.page.write_text(page(asked.out))
