"""Hugging Face vision models: every hidden state, pooled as soon as it is computed.

For models whose hidden states are the outputs of stages, the blocks inside stages are layers too. ImageGPT is converted
to an `igpt_model.IGPT`, since its own processor omits the start token. Letters: B images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from igpt_model.checked_json import read_json
from igpt_model.images import ImageTransform
from igpt_model.palette import Palette
from probekit.encoders.encoder import Encoder
from probekit.encoders.hf_processor import ProcessorPreparation, load_processor, prepare_with
from probekit.encoders.hf_states import AFTER_NORM, find_hidden_states
from probekit.encoders.hooks import ModuleEncoder, match_modules
from probekit.encoders.igpt import IGPTEncoder
from probekit.encoders.preparation import (
    DescribedPreparation,
    known_kernel,
    largest_difference,
    odd_pictures,
    odd_results,
    pair,
    preparation,
    sides,
)
from probekit.encoders.weights import Loaded, load_weights_of
from probekit.runtime.errors import UserError, explained, first_line
from probekit.runtime.imports import library

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
IMAGE_TOWERS = ("vision_model", "image_model", "vision_tower", "visual")


def _transformers() -> Any:
    library("transformers.image_processing_utils", "hf:")
    return library("transformers", "hf:")


def load_hf(name: str, revision: str | None = None, **options: Any) -> Encoder:
    """`hf:FOLDER_OR_NAME`: a local folder, or a model from the hub (downloaded by transformers, at `revision`).

    A weights file may replace the model's own (`load_weights_of`); options are those of `from_transformers`.
    """
    transformers = _transformers()
    config, written = _config(name, revision)
    if not transformers.utils.is_peft_available() and (Path(name) / "adapter_config.json").is_file():
        raise UserError(
            f"hf:{name} contains an adapter (adapter_config.json), which needs peft; pip install peft, or merge the "
            "adapter into the weights (merge_and_unload)."
        )
    with explained(f"hf:{name} cannot be loaded", "check the folder or name"):
        model, info = _class(transformers, config).from_pretrained(
            name, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    loaded = load_weights_of(model, options)
    if loaded is None:
        loaded = Loaded(f"hf:{name}", tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"])))
    about = {"name": Path(name.rstrip("/")).name, "source": name, "revision": getattr(config, "_commit_hash", None)}
    return _encoder(model, name, revision, written, about, loaded, options)


def _class(transformers: Any, config: Any) -> Any:
    return transformers.ImageGPTForCausalImageModeling if config.model_type == "imagegpt" else transformers.AutoModel


def load_random_hf(name: str, weights_seed: int = 0, **options: Any) -> Encoder:
    """`random:hf:NAME`: the architecture of a folder or hub model with randomly initialised weights."""
    transformers = _transformers()
    config, written = _config(name, None)
    kind = _class(transformers, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    about = {"name": "random", "source": name, "weights_seed": weights_seed}
    return _encoder(model, name, None, written, about, Loaded(), options)


def _config(name: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """A model's configuration, and the content of its processor file ({} if it has none)."""
    transformers = _transformers()
    with explained(f"hf:{name} is neither a folder with a config.json nor a model that can be fetched"):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    folder = Path(name)
    if folder.is_dir() and not (folder / PROCESSOR_FILES[0]).is_file() and not _nested_settings(folder):
        return config, {}
    try:
        written, _ = transformers.image_processing_utils.ImageProcessingMixin.get_image_processor_dict(
            name, revision=revision
        )
    except OSError as error:
        if folder.is_dir():
            raise UserError(
                f"hf:{name}: its preprocessor_config.json cannot be read ({first_line(error)}); correct the file."
            ) from error
        written = {}  # the hub has no such file
    if not isinstance(written, dict):
        raise UserError(f"hf:{name}: its preprocessor_config.json is not a JSON object; correct the file.")
    return config, written


def _nested_settings(folder: Path) -> dict[str, Any] | None:
    """The image settings in processor_config.json, which transformers reads first, or None."""
    file = folder / PROCESSOR_FILES[1]
    return read_json(file, {"image_processor?": (dict, None)}).get("image_processor") if file.is_file() else None


def _encoder(
    model: Any,
    name: str,
    revision: str | None,
    written: Mapping[str, Any],
    about: dict[str, Any],
    loaded: Loaded,
    options: dict[str, Any],
) -> Encoder:
    if model.config.model_type == "timm_wrapper":
        return _of_timm(model, name, revision, about, loaded, options)
    replaced = all(options.get(key) is not None for key in ("resolution", "mean", "std"))
    try:
        processor, note = load_processor(_transformers(), name, revision, model.config, written)
    except UserError as error:
        if not replaced:
            raise
        processor, note = None, f"its own image processor is not used ({str(error).split('; ')[0]})"
    if processor is not None and (Path(name) / PROCESSOR_FILES[0]).is_file():
        nested = _nested_settings(Path(name)) or {}
        other = read_json(Path(name) / PROCESSOR_FILES[0], {})
        if differing := sorted(key for key, value in nested.items() if other.get(key, value) != value):
            note = (
                f"{PROCESSOR_FILES[1]} is used, as by transformers; {PROCESSOR_FILES[0]} next to it has a different "
                f"{', '.join(differing)}"
            )
    if note:
        about["pictures"] = note
    if model.config.model_type == "imagegpt":
        return from_imagegpt(model, processor, about, **options)
    return from_transformers(model, processor, about, loaded=loaded, **options)


def _of_timm(
    model: Any, name: str, revision: str | None, about: dict[str, Any], loaded: Loaded, options: dict[str, Any]
) -> Encoder:
    """A timm model wrapped by transformers: timm's layers and transform, at the size of transformers' processor."""
    from probekit.encoders.timm_models import from_timm

    inner = model.timm_model
    # transformers' processor ignores the test size of timm
    inner.pretrained_cfg = {k: v for k, v in model.config.pretrained_cfg.items() if not k.startswith("test_")}
    missing = tuple(key.removeprefix("timm_model.") for key in loaded.missing)
    encoder = from_timm(inner, {**about, "kind": "hf"}, loaded=replace(loaded, missing=missing), **options)
    if not {"resolution", "resize", "crop", "interpolation", "mean", "std"} & {
        k for k, v in options.items() if v is not None
    }:
        processor = _transformers().AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        for picture in odd_pictures():
            theirs = np.asarray(processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0])
            if largest_difference(encoder._normalise, encoder.prepare(picture), theirs) > 0:
                raise UserError(
                    f"hf:{name}: {type(processor).__name__} prepares images differently from timm's transform; give "
                    f"timm:{model.config.architecture}, or --resolution, --mean and --std."
                )
    return encoder


def from_transformers(
    model: Any,
    processor: Any,
    about: dict[str, Any],
    layers: str | Sequence[str] | None = None,
    prefix_tokens: int | None = None,
    loaded: Loaded | None = None,
    **options: Any,
) -> ModuleEncoder:
    """Wrap a transformers vision model, or the vision part of a CLIP-like model.

    The default `layers` are every hidden state (0 is the embedding), the blocks inside stages and, if it is a separate
    tensor, the last state after the final norm; otherwise names or globs of submodules ("encoder.layers.*.blocks.*").
    `processor` is None where resolution, mean and std are given; `about` are entries for the provenance; `options` are
    those of `ModuleEncoder`.
    """
    model, loaded = _image_tower(model, loaded or Loaded())
    model.eval()
    whose = f"hf:{about.get('source')}"
    resolution, resize, crop, interpolation, mean, std = (
        options.pop(key, None) for key in ("resolution", "resize", "crop", "interpolation", "mean", "std")
    )
    prepare: DescribedPreparation | None
    prepare = before = preparation(resolution, resize, crop, interpolation or _kernel(processor))
    if processor is not None:
        if interpolation is not None:
            if not hasattr(processor, "resample"):
                raise UserError(f"{whose}: {type(processor).__name__} takes no interpolation; leave it out.")
            processor.resample = Image.Resampling[known_kernel(interpolation).upper()]
        prepare, left = prepare_with(processor, whose, before, mean, std)
        mean, std = (mean, std) if left is None else (left.mean, left.std)
    elif prepare is None or mean is None or std is None:
        raise UserError(
            f"{whose} has no preprocessor_config.json that says how images are prepared, and transformers knows no "
            "image processor for it; give resolution, mean and std (--resolution --mean --std)."
        )
    size = sides(np.asarray(prepare(odd_pictures()[0])))
    if prefix_tokens is None and model.config.model_type == "dinov3_convnext":
        prefix_tokens = 1  # its last_hidden_state begins with the mean of the map
    forward, input_rule = _forward(model, size)
    states = named = find_hidden_states(model, forward, size)
    if layers is not None:
        named = {name: states[name] for name in match_modules(model, layers) if name in states}
    last = [f", but {name} is the last one after the final norm" for name in named if named[name] == AFTER_NORM]
    provenance = {
        "kind": "hf",
        "config": model.config.to_dict(),
        "norm": f"raw hidden states{''.join(last)}",
        "hidden_states": named,
        "input": input_rule,
        **about,
    }
    return ModuleEncoder(
        model,
        list(states) if layers is None else layers,
        prepare=prepare,
        mean=mean,
        std=std,
        prefix_tokens=prefix_tokens,
        forward=forward,
        loaded=loaded,
        provenance=provenance,
        **options,
    )


def _kernel(processor: Any) -> str | None:
    """The name of the Pillow kernel with which a processor resizes, or None."""
    try:
        return Image.Resampling(int(processor.resample)).name.lower()
    except (AttributeError, TypeError, ValueError):
        return None


def _image_tower(model: Any, loaded: Loaded) -> tuple[Any, Loaded]:
    """The image part of an image-text model, and the keys missing in that part."""
    text = any(hasattr(model, name) for name in ("text_model", "language_model", "text_projection", "qformer"))
    tower = next((name for name in IMAGE_TOWERS if hasattr(model, name)), None)
    if not text or tower is None:
        return model, loaded
    prefix = f"{tower}."
    missing = tuple(key.removeprefix(prefix) for key in loaded.missing if key.startswith(prefix))
    return getattr(model, tower), replace(loaded, missing=missing)


def _forward(model: Any, sides: tuple[int, int]) -> tuple[Any, str]:
    """How to call the model: without masking (MAE), with interpolated positions if the image size differs."""
    image_size = getattr(model.config, "image_size", None)
    other_size = image_size is not None and pair(image_size) != tuple(sides) and hasattr(model.config, "patch_size")
    extra: dict[str, Any] = {"interpolate_pos_encoding": True} if other_size else {}
    # Hiera has the setting too, but its encoder masks only where it is being trained
    masks = hasattr(model.config, "mask_ratio") and all(getattr(part, "is_mae", True) for part in model.modules())
    rule = f"images of {sides[0]} x {sides[1]}" + (", positions interpolated" if other_size else "")
    if masks:
        model.config.mask_ratio = 0.0
        rule += ", no patch masked, patches in raster order"

    def forward(module: Any, x: torch.Tensor, **more: Any) -> Any:
        if masks:
            patch = pair(model.config.patch_size)
            count = (x.shape[2] // patch[0]) * (x.shape[3] // patch[1])
            # MAE orders patches by this noise: rising noise keeps them as they are
            more["noise"] = torch.arange(count, device=x.device, dtype=torch.float32).expand(len(x), -1)
        return module(pixel_values=x, **extra, **more)

    return forward, rule


def from_imagegpt(
    model: Any,
    processor: Any,
    about: dict[str, Any],
    layers: str | int | Sequence[str | int] | None = None,
    norm: bool = True,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> IGPTEncoder:
    """Convert a Hugging Face ImageGPT to an `IGPTEncoder`: images and colours of its own processor, a start token in
    front, and every layer followed by the norm that reads it."""
    from igpt_model.convert.huggingface import from_huggingface

    whose = f"hf:{about.get('source')}"
    clusters = getattr(processor, "clusters", None)
    if clusters is None:
        raise UserError(f"{whose} has no colour clusters in preprocessor_config.json; add that file.")
    igpt = from_huggingface(model)
    side = igpt.config.side
    palette = Palette(np.array(clusters, dtype=np.float32))
    steps_off = dict.fromkeys(("do_rescale", "do_normalize", "do_color_quantize"), False)
    prepare = ProcessorPreparation(processor, steps_off, None, pixels=True)
    for picture, pixels in zip(odd_pictures(), odd_results(whose, prepare), strict=True):
        if pixels.shape[:2] != (side, side):
            raise UserError(
                f"{whose}: its processor returns {pixels.shape[:2]} pixels, but the model reads {side} x {side}; "
                "correct preprocessor_config.json."
            )
        theirs = np.asarray(processor(Image.fromarray(picture), return_tensors="np")["input_ids"]).ravel()
        # a colour equally far from two clusters may be assigned to either, by rounding
        if np.mean(palette.encode(pixels[None]).ravel() != theirs) > 1e-3:
            raise UserError(
                f"{whose}: its processor does not return the nearest of its clusters in [-1, 1]; correct the file."
            )
    encoder = IGPTEncoder(
        igpt,
        palette,
        ImageTransform(side),
        about["name"],
        norm,
        layers,
        device=device,
        dtype=dtype,
        provenance={"kind": "hf", "converted": "to igpt_model.IGPT", "preparation": prepare.to_dict(), **about},
    )
    encoder.prepare = prepare
    return encoder
