"""iGPT, from pixels to a trained model: palette, transformer, objectives, training, features.

Follows Chen et al., "Generative Pretraining from Pixels" (2020), and the authors' released code.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "IGPT": "model",
    "ModelConfig": "config",
    "Palette": "palette",
    "ImageTransform": "images",
    "encode": "features",
    "train": "training.pretrain",
    "TrainConfig": "training.config",
    "finetune": "training.finetune",
    "FinetuneConfig": "training.config",
    "UserError": "errors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # imported lazily, so that commands that only read records do not import torch
    if name not in _HOME:
        raise AttributeError(f"module 'igpt_model' has no attribute {name!r}")
    value = getattr(import_module(f"igpt_model.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
