"""iGPT, from pixels to a trained model: palette, transformer, objectives, training, features.

Source of every choice: Chen et al., "Generative Pretraining from Pixels" (2020), and the authors' released code.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "IGPT": "model",
    "ModelConfig": "config",
    "Palette": "palette",
    "ImageTransform": "images",
    "encode": "features",
    "train": "train",
    "TrainConfig": "train",
    "finetune": "finetune",
    "FinetuneConfig": "finetune",
    "UserError": "errors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # lazy, so that a command that only reads records need not wait for torch
    if name not in _HOME:
        raise AttributeError(f"module 'igpt_model' has no attribute {name!r}")
    value = getattr(import_module(f"igpt_model.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `igpt_model.train` the function, also after somebody has imported the submodule of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
