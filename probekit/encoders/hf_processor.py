"""transformers' own image processor as an encoder's `prepare`.

Nothing is reimplemented: the class named in the model's files (its Pillow version, the reference) resizes, crops, pads
and reorders channels. Letters: H and W sides.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from probekit.encoders.preparation import (
    DescribedPreparation,
    Normalisation,
    Preparation,
    plain,
    settle,
    sides,
    triple,
)
from probekit.runtime.errors import UserError, explained, first_line

# entries of processor files without effect on images
ABOUT = {
    *("auto_map", "feature_extractor_type", "image_processor_class", "image_processor_type", "processor_class"),
    *("processor_type", "tokenizer_class", "transformers_version", "use_fast", "model_input_names"),
    *("max_size", "pad_and_return_pixel_mask", "reduce_labels"),
}
# switches of the steps that --resolution, --resize and --crop replace
SIZE_SWITCHES = ("do_resize", "do_center_crop", "do_crop", "do_pad", "do_thumbnail", "do_align_long_axis")
REPLACE = "give --resolution, --mean and --std, which replace it"
VALUE_SWITCHES = ("do_rescale", "do_normalize", "include_top")


@dataclass(frozen=True, eq=False)
class ProcessorPreparation(DescribedPreparation):
    """Prepare one image with a transformers image processor, some of whose steps may be switched off, after resizing it
    as the user asks (`before`).

    With `pixels`, returns uint8 (H, W, 3) if the remaining steps do; otherwise float32 (3, H, W).
    """

    processor: Any
    switched_off: Mapping[str, Any]
    before: Preparation | None
    pixels: bool

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        if self.before is not None:
            image_HWC = self.before(image_HWC)
        picture = Image.fromarray(np.ascontiguousarray(image_HWC))
        made = self.processor(picture, return_tensors="pt", **self.switched_off)
        x_CHW = np.asarray(made["pixel_values"])
        if len(x_CHW) == 1 and x_CHW.ndim == 4:
            x_CHW = x_CHW[0]
        if self.pixels and x_CHW.dtype == np.uint8 and x_CHW.ndim == 3:
            return np.ascontiguousarray(np.moveaxis(x_CHW, 0, -1))
        return np.ascontiguousarray(x_CHW, np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {
            "processor": type(self.processor).__name__,
            "settings": plain(self.processor.to_dict()),
            "switched_off": sorted(self.switched_off),
            "before": self.before.to_dict() if self.before else None,
        }


def prepare_with(
    processor: Any, whose: str, before: Preparation | None = None, mean: Any = None, std: Any = None
) -> tuple[DescribedPreparation, Normalisation | None]:
    """`prepare` and the remaining `Normalisation` (or None), from a processor and the user's options.

    `before` replaces the processor's resize, crop and padding; `mean` and `std` replace its own, also separately.
    """
    has = {name for name in (*SIZE_SWITCHES, *VALUE_SWITCHES) if getattr(processor, name, None)}
    sizes_off = {name: False for name in SIZE_SWITCHES if before is not None and name in has}
    values_off = {name: False for name in VALUE_SWITCHES if name in has}
    finished = ProcessorPreparation(processor, sizes_off, before, pixels=False)
    pixels = ProcessorPreparation(processor, sizes_off | values_off, before, pixels=True)
    prepare, left = settle(whose, finished, pixels, _normalisations(processor), mean, std)
    if before is not None:
        made = sides(np.asarray(prepare(np.zeros((*before.crop, 3), np.uint8))))
        if made != before.crop:
            raise UserError(
                f"{whose}: {type(processor).__name__} always resizes {before.crop[0]} x {before.crop[1]} to {made[0]} "
                f"x {made[1]}; leave out --resolution, --resize and --crop."
            )
    return prepare, left


def _normalisations(processor: Any) -> list[Normalisation]:
    """Candidates for a processor's normalisation: rescale, then (x - mean) / std; with and without an offset of 1."""

    def of(name: str, default: Any) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    scaled = bool(of("do_normalize", False))
    try:
        factor = float(of("rescale_factor", 1 / 255)) if of("do_rescale", False) else 1.0
        mean = np.array(triple(of("image_mean", 0.0) if scaled else 0.0))
        std = np.array(triple(of("image_std", 1.0) if scaled else 1.0))
    except (TypeError, ValueError, UserError):
        return []
    if factor <= 0 or (std <= 0).any():
        return []
    if of("include_top", False):  # EfficientNet divides by std twice
        std = std * np.array(triple(of("image_std", 1.0)))
    # 255 * factor is 1 up to rounding for the 0.00392156862745098 in most files
    unit = 1.0 if abs(255 * factor - 1) < 1e-12 else 255 * factor
    made = [(mean / unit, std / unit), ((mean + 1) / unit, std / unit)]
    return [Normalisation(triple(m.tolist()), triple(s.tolist())) for m, s in made]


def load_processor(
    transformers: Any, name: str, revision: str | None, config: Any, written: Mapping[str, Any]
) -> tuple[Any, str | None]:
    """The image processor of a model, with a note if its files do not name it; (None, None) if transformers has none.

    `written` is its preprocessor_config.json; if empty, the defaults of the class are used at the model's image size.
    """
    default = _default_class(transformers, config)
    named = {"image_processor_type", "feature_extractor_type"} & set(written)
    if "auto_map" in written and not named:
        raise UserError(f"hf:{name}: its image processor is custom code, which is not run here; {REPLACE}.")
    if not written:
        if default is None:
            return None, None
        processor = _make(default, _at_image_size(default, config), name)
        size = {k: v for k, v in dict(getattr(processor, "size", None) or {}).items() if v}
        note = f"hf:{name} has no preprocessor_config.json; prepared as {default.__name__} does by default"
        return processor, f"{note}, size {size}" if size else note
    pillow = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            name, revision=revision, config=config, trust_remote_code=False, **pillow
        )
    except Exception as error:
        if named or default is None:
            raise UserError(
                f"hf:{name}: its image processor cannot be created ({first_line(error)}); {REPLACE}."
            ) from error
        processor = _make(default, dict(written), name)
    _check_settings(processor, written, name)
    return processor, None


def _check_settings(processor: Any, written: Mapping[str, Any], name: str) -> None:
    """Refuse a processor file that names a different class, or contains settings that its class does not read."""
    kind = written.get("image_processor_type") or written.get("feature_extractor_type") or type(processor).__name__
    if _plain_name(kind) != _plain_name(type(processor).__name__):
        raise UserError(
            f"hf:{name}: preprocessor_config.json names {kind}, which this version of transformers lacks; {REPLACE}."
        )
    texts = [key for key, value in written.items() if key.startswith("do_") and isinstance(value, str)]
    if texts:
        raise UserError(
            f"hf:{name}: preprocessor_config.json contains {texts[0]}: {written[texts[0]]!r}, but must be true or "
            f"false without quotes; correct the file, or {REPLACE}."
        )
    understood = ABOUT.union(getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {}))
    for part in type(processor).__mro__[:-1]:
        understood |= set(inspect.signature(part).parameters)
    # an unknown step that is switched off is harmless, unless its name is a typo of a known one
    strange = sorted(
        key
        for key, value in written.items()
        if key not in understood
        and (value or (value is not None and get_close_matches(key.lower(), understood, 1, 0.85)))
    )
    if strange:
        raise UserError(
            f"hf:{name}: preprocessor_config.json contains {', '.join(strange)}, which {type(processor).__name__} does "
            f"not support; correct the file, or {REPLACE}."
        )


def _make(kind: Any, settings: dict[str, Any], name: str) -> Any:
    with explained(f"hf:{name}: {kind.__name__} cannot be made", "give --resolution, --mean and --std"):
        return kind.from_dict(settings)


def _plain_name(kind: str) -> str:
    """An image processor's name without the affixes of its variants."""
    return kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")


def _default_class(transformers: Any, config: Any) -> Any:
    """The processor class of transformers, preferably Pillow's, for a configuration or its package."""
    auto = import_module("transformers.models.auto.image_processing_auto")
    package = type(config).__module__.rpartition(".")[0].rpartition(".")[2]
    names = auto.IMAGE_PROCESSOR_MAPPING_NAMES
    found = names.get(getattr(config, "model_type", None)) or names.get(package)
    if found is None:
        return None
    listed = [found.get("pil"), found.get("torchvision")] if isinstance(found, Mapping) else list(found)
    classes = [auto.get_image_processor_class_from_name(name) for name in listed if name]
    usable = [kind for kind in classes if kind is not None and not getattr(kind, "is_dummy", False)]
    if not usable:
        raise UserError(
            f"The image processor {listed[-1]} needs torchvision, which is not installed; install the build for this "
            "torch, or give --resolution, --mean and --std."
        )
    return usable[0]


def _at_image_size(kind: Any, config: Any) -> dict[str, Any]:
    """The default sizes of the class, scaled to the image size that the model was built for."""
    side = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(side, list | tuple):
        side = side[0] if len(set(side)) == 1 else None
    with explained(f"{kind.__name__} cannot be made without settings", "add a preprocessor_config.json", TypeError):
        default = kind()
    size = plain(dict(getattr(default, "size", None) or {}))
    crop = plain(dict(getattr(default, "crop_size", None) or {})) if getattr(default, "do_center_crop", False) else {}
    size, crop = ({k: v for k, v in part.items() if v} for part in (size, crop))
    if not isinstance(side, int) or not size or not set(size) <= {"height", "width", "shortest_edge"}:
        return {}
    now = crop.get("height") or size.get("height") or size["shortest_edge"]
    scaled = {"size": {key: round(value * side / now) for key, value in size.items()}}
    return scaled | ({"crop_size": {"height": side, "width": side}} if crop else {})
