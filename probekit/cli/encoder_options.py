"""The flags that describe an encoder, spelled alike in every verb that loads one."""

from dataclasses import asdict, dataclass, field
from typing import Any


def _flag(help: str) -> Any:
    return field(default=None, metadata={"help": help})


@dataclass(frozen=True)
class EncoderOptions:
    """Options of `load_encoder`: one not given is left to the encoder, one it does not take is refused."""

    layers: tuple[str, ...] | None = _flag("Only the layers of these names or globs, for example 'blocks.*'.")
    norm: bool | None = _flag("Pass each layer through the norm that reads it next (iGPT); --no-norm keeps it raw.")
    masked: bool | None = _flag("BERT: hide pixels as in training, as the paper probes it; --no-masked shows all.")
    seed: int | None = _flag("BERT: seed of the masks, which depend on it and on the row alone.")
    pool: str | None = _flag("How the positions of a layer become one vector: mean, cls or both.")
    axes: str | None = _flag("Torch modules: what an output's axes are, where shapes leave it open; BCHW, BHWC, BTD.")
    prefix_tokens: int | None = _flag("Special tokens in front of the patches, where the parameters do not tell.")
    resolution: int | None = _flag("Pixels a side, for encoders that leave it open.")
    resize: int | None = _flag("Length of an image's shorter side before the crop.")
    crop: int | None = _flag("Side of the centre crop.")
    interpolation: str | None = _flag("Pillow kernel of the resize.")
    mean: tuple[float, float, float] | None = _flag("Per-channel mean that is subtracted.")
    std: tuple[float, float, float] | None = _flag("Per-channel deviation that is divided by.")
    weights: str | None = _flag("Weights file (.safetensors, or .pt read with weights_only).")
    state_key: str | None = _flag("Key under which the weights file holds the state dict.")
    strip_prefix: str | None = _flag("Prefix to take off the weights' names.")
    ignore: tuple[str, ...] | None = _flag("Globs of keys of the weights file to leave out, for example 'projector.*'.")
    device: str | None = _flag("Where the encoder runs: cpu, cuda, cuda:1.")
    dtype: str | None = _flag("Precision of the encoder's arithmetic: float32 or bfloat16.")

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}
