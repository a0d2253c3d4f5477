"""timm models: the layers that timm itself lists as features, each pooled as it arises.

timm's `forward_intermediates` returns them all at once; hooks on the same submodules (`feature_info`) give the same
tensors one at a time. Letters: B images.
"""

from collections.abc import Sequence
from typing import Any

import torch

from probekit.encoders.hooks import ModuleEncoder, preparation
from probekit.encoders.preparation import KERNELS, Preparation
from probekit.encoders.weights import load_weights
from probekit.runtime.errors import UserError, first_line


def load_timm(
    name: str,
    layers: str | Sequence[str] | None = None,
    weights: str | None = None,
    state_key: str | None = None,
    strip_prefix: str | None = None,
    **options: Any,
) -> ModuleEncoder:
    """`timm:NAME`, with timm's pretrained weights, or those of a file.

    Parameters
    ----------
    name : str
        As `timm.create_model` takes it.
    layers : str or sequence of str, optional
        None: the submodules in the model's `feature_info` (each block of a ViT, each stage of a ConvNet).
    weights, state_key, strip_prefix : optional
        A weights file instead of timm's own.
    **options
        As `ModuleEncoder` takes them; size, crop and normalisation come from the model's own data config.
    """
    model = _create(name, pretrained=weights is None)
    if weights is not None:
        load_weights(model, weights, state_key, strip_prefix)
    return from_timm(model, {"name": name, "source": name}, layers, **options)


def load_random_timm(
    name: str, weights_seed: int = 0, layers: str | Sequence[str] | None = None, **options: Any
) -> ModuleEncoder:
    """`random:timm:NAME`: the architecture with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = _create(name, pretrained=False)
    return from_timm(model, {"name": "random", "source": name, "weights_seed": weights_seed}, layers, **options)


def _create(name: str, pretrained: bool) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("timm: needs timm; install it with: pip install 'igpt-probekit[timm]'.") from error
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        raise UserError(
            f"timm:{name} cannot be made ({first_line(error)}); `timm.list_models()` lists the names."
        ) from error


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
    """Wrap a timm model that is already made.

    Raises
    ------
    UserError
        timm lists no features for it and `layers` is None.
    """
    settings = getattr(model, "pretrained_cfg", None) or {}
    if layers is None:
        info = getattr(model, "feature_info", None)
        listed = info if isinstance(info, list) else getattr(info, "info", None)
        layers = [entry["module"] for entry in listed or [] if entry.get("module")]
        if not layers:
            raise UserError(f"timm lists no feature layers for {about['source']}; name submodules with layers=.")
    if prefix_tokens is None and _has_tokens(model):
        prefix_tokens = model.num_prefix_tokens
    return ModuleEncoder(
        model,
        layers,
        prepare=preparation(resolution, resize, crop, interpolation, _preparation(settings)),
        mean=mean if mean is not None else settings.get("mean"),
        std=std if std is not None else settings.get("std"),
        prefix_tokens=prefix_tokens,
        provenance={"kind": "timm", "config": _plain(settings), **about},
        **options,
    )


def _has_tokens(model: Any) -> bool:
    return isinstance(getattr(model, "num_prefix_tokens", None), int)


def _preparation(settings: Any) -> Preparation | None:
    size = settings.get("test_input_size") or settings.get("input_size")
    if size is None:
        return None
    height, width = int(size[1]), int(size[2])
    kernel = settings.get("interpolation", "bicubic")
    # timm resizes the shorter side to size / crop_pct (rounded down), then crops the centre
    resize = int(min(height, width) / (settings.get("test_crop_pct") or settings.get("crop_pct") or 0.875))
    return Preparation((height, width), max(resize, height, width), kernel if kernel in KERNELS else "bicubic")


def _plain(settings: Any) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dict(settings).items() if _is_json(v)}


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | tuple | list)
