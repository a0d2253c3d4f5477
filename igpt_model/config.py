"""Configuration of an iGPT: sizes, published presets, exact parameter and operation counts.

Letters: B images, T positions, D width (`n_embd`), V palette colours, L blocks (`n_layer`).
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from igpt_model.arguments import checked, from_json
from igpt_model.errors import UserError
from igpt_model.ranges import Range, check_settings

# Table in section 3.3 of the paper; heads of S, M and L from the released sampling commands. The number of heads of XL
# was never published; 24 (head width 128, as in M) is our choice.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 10, "n_embd": 48, "n_head": 4},
    "S": {"n_layer": 24, "n_embd": 512, "n_head": 8},
    "M": {"n_layer": 36, "n_embd": 1024, "n_head": 8},
    "L": {"n_layer": 48, "n_embd": 1536, "n_head": 16},
    "XL": {"n_layer": 60, "n_embd": 3072, "n_head": 24},
}

MAX_COLOURS = 65_536  # tokens are uint16


def _number(default: int, most: int) -> Any:
    return field(default=default, metadata={"range": Range(1, most)})


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and type of an iGPT.

    Parameters
    ----------
    n_layer, n_embd, n_head : int
        Number of blocks, width, and number of attention heads, which divides the width.
    vocab_size : int
        Colours of the palette (the paper: 512, nine bits).
    n_positions : int
        Pixels of an image, rows x columns (the paper: 32 x 32 = 1,024).
    causal : bool
        True: autoregressive, with a start token. False: BERT, with masked inputs.
    bias : bool
        Whether the linear layers have biases. iGPT has none; only Hugging Face weights with nonzero biases need them.
    mask_prob : float
        BERT only: probability that a position is masked (appendix A of the paper).
    """

    n_layer: int = _number(10, 1000)
    n_embd: int = _number(48, 65_536)
    n_head: int = _number(4, 65_536)
    vocab_size: int = _number(512, MAX_COLOURS)
    n_positions: int = _number(1024, 4096**2)
    causal: bool = True
    bias: bool = False
    mask_prob: float = field(default=0.15, metadata={"range": Range(0, 1, above=True)})

    def __post_init__(self) -> None:
        check_settings(self)
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}; choose an n_head that divides it."
            )

    @classmethod
    @checked
    def preset(cls, name: str, **overrides: Any) -> "ModelConfig":
        """Return the sizes called `name`: tiny, S, M, L or XL, with other fields as in `overrides`."""
        if name not in PRESETS:
            raise UserError(f"Unknown model {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **overrides})

    @property
    def n_params(self) -> int:
        """Number of trained parameters, including the position table of `n_positions` rows."""
        d = self.n_embd
        block = 12 * d * d + 2 * d + (9 * d if self.bias else 0)
        start = d if self.causal else 0
        return self.n_layer * block + 2 * self.vocab_size * d + self.n_positions * d + start + d

    @property
    def flops_per_image(self) -> int:
        """Floating point operations of one image's forward pass: matrix products and full (not halved) attention.

        A training step costs three times as much an image.
        """
        t, d = self.n_positions, self.n_embd
        return 2 * t * (12 * self.n_layer * d * d + self.vocab_size * d) + 4 * t * t * d * self.n_layer

    @property
    def side(self) -> int:
        """Pixels per side of the images; `UserError` if n_positions is not a square."""
        side = math.isqrt(self.n_positions)
        if side**2 != self.n_positions:
            raise UserError(f"n_positions is {self.n_positions}, which is not a square number; square images need one.")
        return side

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    @checked
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Build from the result of `to_dict`; `UserError` for unknown fields."""
        return from_json(cls, values, "The model configuration")
