"""timm models: the layers that timm lists as features, each pooled as soon as it is computed.

timm's `forward_intermediates` returns all of them at once; hooks on the same submodules (`feature_info`) give the same
tensors one at a time. Images are prepared by timm's own evaluation transform. Letters: B images, H and W sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from probekit.encoders.hooks import ModuleEncoder, submodules
from probekit.encoders.preparation import (
    DescribedPreparation,
    Normalisation,
    known_kernel,
    plain,
    preparation,
    settle,
    triple,
)
from probekit.encoders.weights import load_weights_of
from probekit.runtime.errors import UserError, explained
from probekit.runtime.imports import library

# the last steps of timm's evaluation transform, which `Normalisation` replaces
LAST_STEPS = (("ToTensor", "MaybeToTensor"), ("Normalize",))


def load_timm(name: str, **options: Any) -> ModuleEncoder:
    """`timm:NAME`, a name for `timm.create_model`, with timm's pretrained weights or those of a file
    (`load_weights_of`).

    Options are those of `ModuleEncoder`; size, crop and normalisation come from the model's own data config.
    """
    model = _create(name, pretrained=options.get("weights") is None)
    loaded = load_weights_of(model, options)
    return from_timm(model, {"name": name, "source": name}, loaded=loaded, **options)


def load_random_timm(name: str, weights_seed: int = 0, **options: Any) -> ModuleEncoder:
    """`random:timm:NAME`: the architecture with randomly initialised weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = _create(name, pretrained=False)
    return from_timm(model, {"name": "random", "source": name, "weights_seed": weights_seed}, **options)


def _create(name: str, pretrained: bool) -> Any:
    timm = library("timm", "timm:")
    with explained(f"timm:{name} cannot be made", "`timm.list_models()` lists the names"):
        return timm.create_model(name, pretrained=pretrained)


def from_timm(
    model: Any,
    about: dict[str, Any],
    layers: str | Sequence[str] | None = None,
    resolution: int | None = None,
    resize: Any = None,
    crop: Any = None,
    interpolation: str | None = None,
    mean: Any = None,
    std: Any = None,
    prefix_tokens: int | None = None,
    **options: Any,
) -> ModuleEncoder:
    """Wrap a timm model; the default `layers` are the submodules in its `feature_info`."""
    settings = dict(getattr(model, "pretrained_cfg", None) or {})
    if layers is None:
        layers = _listed_layers(model, about)
    own = resolve(settings, {} if interpolation is None else {"interpolation": known_kernel(interpolation)})
    prepare: DescribedPreparation | None = preparation(resolution, resize, crop, interpolation or own["interpolation"])
    if prepare is None:
        prepare, left = prepare_with(own, f"timm:{about['source']}", mean, std)
        mean, std = (None, None) if left is None else (left.mean, left.std)
    else:
        mean, std = (own["mean"] if mean is None else mean), (own["std"] if std is None else std)
    tokens = model.num_prefix_tokens if isinstance(getattr(model, "num_prefix_tokens", None), int) else None
    return ModuleEncoder(
        model,
        layers,
        prepare=prepare,
        mean=mean,
        std=std,
        prefix_tokens=prefix_tokens,
        suggested_prefix=tokens,
        provenance={"kind": "timm", "config": plain(settings), **about},
        **options,
    )


def _listed_layers(model: Any, about: Mapping[str, Any]) -> list[str]:
    """The submodules that timm lists as features."""
    info = getattr(model, "feature_info", None)
    listed = info if isinstance(info, list) else getattr(info, "info", None)
    layers = [entry["module"] for entry in listed or [] if entry.get("module")]
    if not layers:
        raise UserError(f"timm lists no feature layers for {about['source']}; give submodules as layers= (--layers).")
    there = submodules(model)
    absent = [name for name in layers if name not in there]
    if not absent:
        return layers
    # numbered submodules of a parent with as many children as timm lists features ("stages.0" for "layers.0")
    for parent in ("stages", "layers", "blocks"):
        stages = [name for name in there if name.rpartition(".")[0] == parent]
        if len(stages) == len(layers):
            return stages
    names = ", ".join(name for name, _ in model.named_children())
    raise UserError(
        f"timm lists the feature layer {absent[0]} for {about['source']}, which the model does not have; give "
        f"submodules with --layers (it has {names})."
    )


def resolve(settings: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """timm's data configuration for a `pretrained_cfg`, at timm's test size."""
    size = settings.get("input_size")
    if size is not None and size[0] != 3:
        raise UserError(f"The model takes images with {size[0]} channel(s), not RGB; write a function for torch:.")
    data = library("timm.data", "timm:")
    return dict(data.resolve_data_config(dict(asked or {}), pretrained_cfg=dict(settings), use_test_size=True))


@dataclass(frozen=True, eq=False)
class TimmPreparation(DescribedPreparation):
    """Prepare one image with timm's evaluation transform, possibly without its last steps; `config` is for the
    provenance."""

    transform: Any
    config: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """One image, HWC uint8, as uint8 (H, W, 3), or finished float32 (3, H, W)."""
        made = self.transform(Image.fromarray(np.ascontiguousarray(image_HWC)))
        return made.numpy() if isinstance(made, torch.Tensor) else np.array(made)

    def to_dict(self) -> dict[str, Any]:
        return {"transform": "timm.data.create_transform", "settings": plain(self.config)}


def prepare_with(
    config: Mapping[str, Any], whose: str, mean: Any = None, std: Any = None
) -> tuple[DescribedPreparation, Normalisation | None]:
    """`prepare` and the remaining `Normalisation` (or None), from timm's data configuration."""
    # "interpolation: random" and other settings that evaluation does not take
    with explained(f"{whose}: timm cannot make its transform", "give --interpolation, or --resolution", named=True):
        transform = library("timm.data", "timm:").create_transform(**config, is_training=False)
    steps = list(transform.transforms)
    pixels = None
    if all(type(s).__name__ in names for s, names in zip(steps[-2:], LAST_STEPS, strict=True)):
        pixels = TimmPreparation(type(transform)(steps[:-2]), config)
    ends = [Normalisation(triple(config["mean"]), triple(config["std"]))]
    return settle(whose, TimmPreparation(transform, config), pixels, ends, mean, std)
