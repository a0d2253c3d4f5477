"""The flags that describe an encoder, shared by all commands that load one."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


def _flag(help: str) -> Any:
    return field(default=None, metadata={"help": help, "group": "Encoder"})


@dataclass(frozen=True)
class EncoderOptions:
    """Options of `load_encoder`; those not given have the encoder's default, those it does not take are refused."""

    layers: tuple[str, ...] | None = _flag("Names or globs of layers to extract, for example 'blocks.*'.")
    norm: bool | None = _flag("Pass each layer through the norm that reads it next (iGPT); --no-norm keeps it raw.")
    masked: bool | None = _flag("BERT: mask pixels as in training and in the paper's probes; --no-masked shows all.")
    seed: int | None = _flag("BERT: seed of the masks, which also depend on the row.")
    pool: Literal["mean", "cls", "both"] | None = _flag("Pooling of a layer's positions into one vector.")
    axes: str | None = _flag("Order of an output's axes, if its shape is ambiguous: BCHW, BHWC, BTD, BDT.")
    prefix_tokens: int | None = _flag("Number of special tokens before the patches, if it cannot be determined.")
    resolution: int | None = _flag("Side of the images in pixels, for encoders that accept several.")
    resize: int | None = _flag("Length of an image's shorter side before the crop.")
    crop: int | None = _flag("Side of the centre crop.")
    interpolation: str | None = _flag("Pillow filter of the resize.")
    mean: tuple[float, float, float] | None = _flag("Mean to subtract from each channel.")
    std: tuple[float, float, float] | None = _flag("Standard deviation to divide each channel by.")
    weights: str | None = _flag("Weights file (.safetensors, or .pt read with weights_only).")
    state_key: str | None = _flag("Key of the state dict in the weights file.")
    strip_prefix: str | None = _flag("Prefix to remove from the weights' names.")
    ignore: tuple[str, ...] | None = _flag("Globs of keys of the weights file to leave out, for example 'projector.*'.")
    device: str | None = _flag("Device of the encoder: cpu, cuda, cuda:1.")
    dtype: Literal["float32", "bfloat16"] | None = _flag("Precision of the encoder.")

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}
