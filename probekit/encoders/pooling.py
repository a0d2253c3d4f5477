"""Recognise a module's output (tokens, a feature map, a vector) and pool it to one row per image.

Nothing is guessed silently: the batch axis is determined by running two batch sizes; the channel axis of a map by the
proportions of the image, or by running a wider image; the number of special tokens by what exceeds the image's grid.
Each decision is recorded, and an ambiguous case is an error.

Letters: B images, T positions, D width, C channels, H and W sides of a map.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probekit.runtime.errors import UserError

POOLS = ("mean", "cls", "both")
AXES = {
    "BD": "vectors",
    "BTD": "token sequences (batch first)",
    "TBD": "token sequences (batch second)",
    "BDT": "token sequences (channels second)",
    "BCHW": "feature maps (channels first)",
    "BHWC": "feature maps (channels last)",
}
CLASS = ("cls_token", "class_token", "class_embedding")
SPECIAL = (*CLASS, "dist_token", "distillation_token", "register_tokens", "reg_token")


@dataclass(frozen=True)
class Layout:
    """How a layer is read: its axes (one of AXES), number of special tokens in front (CLS, registers), positions in the
    mean, features after pooling, and pooling ("both": CLS, then mean)."""

    axes: str
    prefix_tokens: int
    positions: int
    width: int
    pool: str

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Pool one output to (B, width) float32."""
        if "T" not in self.axes:
            over = [k for k, axis in enumerate(self.axes) if axis in "HW"]
            return output.float().mean(over) if over else output.float()
        h_BTD = self.tokens(output)
        if self.pool == "cls":
            return h_BTD[:, 0]
        mean_BD = h_BTD[:, self.prefix_tokens :].mean(1)
        return torch.cat([h_BTD[:, 0], mean_BD], 1) if self.pool == "both" else mean_BD

    def tokens(self, output: torch.Tensor) -> torch.Tensor:
        """A sequence of tokens as float32 (B, T, D)."""
        return output.float().permute(*map(self.axes.index, "BTD"))


def first_tensor(output: Any, module: str) -> torch.Tensor:
    """The tensor of a module's output: itself, or the first in a nested tuple, list or mapping."""
    for part in _tensors(output):
        if part.is_floating_point() and part.layout == torch.strided and not part.is_nested:
            return part.as_subclass(torch.Tensor) if type(part) is not torch.Tensor else part
        kind = "nested rows" if part.is_nested else part.dtype if part.layout == torch.strided else part.layout
        raise UserError(
            f"The module {module} returns a tensor of {str(kind).removeprefix('torch.')}, but features must be dense "
            "floating-point numbers; choose another layer."
        )
    raise UserError(f"The module {module} returns {type(output).__name__} without a tensor; choose another layer.")


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of a nested output, in its order."""
    if isinstance(output, torch.Tensor):
        yield output
    for part in parts_of(output):
        yield from _tensors(part)


def parts_of(output: Any) -> Sequence[Any]:
    """The elements of a tuple, list or mapping; empty for a tensor or another object."""
    if isinstance(output, Mapping):
        return list(output.values())
    return output if isinstance(output, list | tuple) else ()


def count_special_tokens(module: torch.nn.Module) -> int:
    """Number of CLS, distillation and register tokens, judging by the names of parameters."""
    count = 0
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in SPECIAL and parameter.numel():
            count += max(1, parameter.numel() // parameter.shape[-1])
    return count


def has_class_token(module: torch.nn.Module) -> bool:
    """Whether a parameter of the module is a class token, judging by its name."""
    return any(name.rpartition(".")[2] in CLASS for name, _ in module.named_parameters())


def is_grid(n: int, sides: tuple[int, int]) -> bool:
    """Whether n is the number of square patches of some size in the image (rounded down or up)."""
    return any(n in (low[0] * low[1], high[0] * high[1]) for low, high in _grids(sides))


def _grids(sides: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Rows and columns of squares of each size, rounded down and up."""
    height, width = sides
    return (((height // s, width // s), (-(-height // s), -(-width // s))) for s in range(1, max(sides) + 1))


def decide(
    name: str,
    shape: tuple[int, ...],
    other: tuple[int, ...],
    sides: tuple[int, int],
    special_tokens: int,
    pool: str = "mean",
    axes: str | None = None,
    prefix_tokens: int | None = None,
    wide: tuple[int, ...] | None = None,
    class_token: bool = True,
) -> Layout:
    """Decide how to read a layer with `shape` and `other` for batches of 2 and 3 images, and `wide` for 2 images of
    twice the width.

    `special_tokens` is the number suggested by parameters or the model's library, `class_token` whether the first of
    them is a CLS token; `axes` and `prefix_tokens` are the user's. Raises `UserError` if the layout is ambiguous, or
    `pool` does not apply.
    """
    if pool not in POOLS:
        raise UserError(f"The pooling {pool!r} is unknown; choose {', '.join(POOLS)}.")
    changed = [i for i in range(len(shape)) if len(shape) != len(other) or shape[i] != other[i]]
    if changed not in ([0], [1]) or (shape[changed[0]], other[changed[0]]) != (2, 3):
        raise UserError(
            f"Layer {name} has the shapes {shape} and {other} for 2 and 3 images, without a batch axis; choose a layer "
            "outside windowed attention, where images are not merged with other axes."
        )
    if 0 in shape:
        raise UserError(f"Layer {name} has shape {shape}, which is empty; choose another layer.")
    batch = changed[0]
    if axes is None:
        axes = _axes(name, shape, batch, sides, wide)
    elif len(shape) == len(axes) == 4 and (seen := map_axes(shape, sides) or axes) != axes:
        raise UserError(f"Layer {name} of shape {shape} is {AXES[seen]}, but axes={axes} was given; give axes={seen}.")
    if axes not in AXES or len(axes) != len(shape) or axes.index("B") != batch:
        raise UserError(f"The axes {axes!r} do not fit layer {name} of shape {shape}; choose {', '.join(AXES)}.")
    if "T" not in axes:
        if pool != "mean":
            kind = "one vector per image" if axes == "BD" else "a feature map"
            raise UserError(f"Layer {name} is {kind} and has no CLS token; use pool=mean.")
        width = shape[axes.index("D" if axes == "BD" else "C")]
        return Layout(axes, 0, 1 if axes == "BD" else shape[axes.index("H")] * shape[axes.index("W")], width, pool)
    positions, width = shape[axes.index("T")], shape[axes.index("D")]
    grown = wide[axes.index("T")] if wide is not None and len(wide) == 3 else positions
    prefix = _prefix(name, positions, grown, sides, special_tokens, prefix_tokens)
    if pool != "mean" and (prefix == 0 or (prefix_tokens is None and not class_token)):
        raise UserError(f"Layer {name} has no CLS token; use pool=mean (or prefix_tokens=1 if the first token is one).")
    return Layout(axes, prefix, positions - prefix, width * (2 if pool == "both" else 1), pool)


def _axes(name: str, shape: tuple[int, ...], batch: int, sides: tuple[int, int], wide: tuple[int, ...] | None) -> str:
    if len(shape) == 2 and batch == 0:
        return "BD"
    changed = [i for i in range(len(shape)) if wide is not None and len(wide) == len(shape) and wide[i] != shape[i]]
    if len(shape) == 3:
        return "TBD" if batch else "BDT" if changed == [2] else "BTD"
    if len(shape) == 4 and batch == 0:
        by_width = {2: "BHWC", 3: "BCHW"}
        seen = map_axes(shape, sides)
        if seen and changed and [by_width.get(i) for i in changed] != [seen]:
            raise UserError(
                f"Layer {name} has the shapes {shape} and {wide} for images of {sides[0]} x {sides[1]} and of twice "
                "the width, so it is not a feature map (attention weights, or heads?); choose another layer."
            )
        if not seen and len(changed) == 1 and changed[0] in by_width:
            square = shape[changed[0] - 1] == shape[changed[0]] or sides[0] != sides[1]
            seen = by_width[changed[0]] if square else None
        if seen:
            return seen
        raise UserError(f"Layer {name} has shape {shape} with ambiguous channels; give axes=BCHW or axes=BHWC.")
    raise UserError(
        f"Layer {name} has shape {shape}, which is not a vector, token sequence or map; choose another layer."
    )


def map_axes(shape: tuple[int, ...], sides: tuple[int, int]) -> str | None:
    """The axes of a map, if only one pair of them has the proportions of the image; otherwise None."""

    def proportional(height: int, width: int) -> bool:
        square = sides[0] == sides[1] and height == width
        return square or any(height in (a, c) and width in (b, d) for (a, b), (c, d) in _grids(sides))

    first, last = proportional(*shape[1:3]), proportional(*shape[2:4])
    return None if first == last else "BHWC" if first else "BCHW"


def _prefix(name: str, positions: int, grown: int, sides: tuple[int, int], special: int, given: int | None) -> int:
    """Number of special tokens in front: `given`, or the number that leaves a grid, also for an image twice as wide
    (with `grown` positions)."""
    grids = [n for n in dict.fromkeys((special, 0)) if positions > n and is_grid(positions - n, sides)]
    if given is None:
        if not grids:
            raise UserError(
                f"Layer {name} has {positions} positions, not a grid of a {sides[0]} x {sides[1]} image with {special} "
                "or no special tokens in front; give prefix_tokens= (--prefix-tokens), or axes=BDT if it is (B, D, T)."
            )
        if grown != positions and not is_grid(grown - grids[0], (sides[0], 2 * sides[1])):
            raise UserError(
                f"Layer {name} has {positions} positions, and {grown} for an image twice as wide, so "
                f"{2 * positions - grown - grids[0]} of them are not patches; give prefix_tokens= if they are in "
                "front, or remove them in a custom submodule."
            )
        return grids[0]
    if not 0 <= given < positions:
        raise UserError(f"prefix_tokens={given} was given, but layer {name} has {positions} positions; give fewer.")
    # positions need not be a grid, but if another number leaves one, the given number is a mistake
    if grids and not is_grid(positions - given, sides):
        raise UserError(
            f"Layer {name} has {positions} positions, of which {given} special tokens leave {positions - given}, not a "
            f"grid of a {sides[0]} x {sides[1]} image, but {grids[0]} would; give prefix_tokens={grids[0]}."
        )
    return given
