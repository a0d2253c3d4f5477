"""Check, when an encoder is created, that the features of an image depend on that image alone.

Three images are run in several batches. A model is refused if features change between runs (dropout that eval() does
not switch off), with the other images in the batch (batch statistics) or with the batch size (squeeze). Letters: B
images, T positions, D width.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
import torch

from probekit.encoders.pooling import is_grid
from probekit.encoders.weights import WRAPPERS, Loaded, hash_weights
from probekit.runtime.errors import UserError, explained, some

# Relative change allowed between batch sizes. float32 on a CPU: other kernels and summation orders, 6e-8 per operation.
# Elsewhere (TF32 in cuDNN's convolutions, half precision): 1e-3 per operation.
TOLERANCE, COARSE_TOLERANCE = 1e-3, 3e-2
# absolute tolerance: smaller values are zeros with rounding noise
FLOOR = 1e-30
# runs of one batch if random numbers are drawn, to detect rare events
REPEATS = 8


def check_features(
    encoder: Any,
    examples: np.ndarray,
    told: bool,
    loaded: Loaded,
    weights_hash: str,
    unused: torch.nn.Module | None,
) -> str:
    """Run all checks of an encoder's features; returns the hash of the weights, with parameters missing in the file set
    to 0. `unused` is a copy of the module that has processed no image."""
    check_tokens(encoder, examples, told)
    check_rows(encoder, examples, unused)
    if hash_weights(encoder.module) != weights_hash:
        raise UserError(
            f"{type(encoder.module).__name__} changes its own parameters or buffers in the forward pass (statistics of "
            "the first batch?), but features must depend on the image alone; fix them before."
        )
    if not loaded.missing:
        return weights_hash
    settle_unloaded(encoder, examples, loaded)
    return hash_weights(encoder.module)


def check_rows(encoder: Any, examples: np.ndarray, unused: torch.nn.Module | None = None) -> None:
    """Refuse an encoder whose features of an image depend on anything but that image."""
    exact = all(p.dtype == torch.float32 for p in encoder.module.parameters() if p.is_floating_point())
    device = encoder._compute.device
    tolerance = TOLERANCE if exact and device.type == "cpu" else COARSE_TOLERANCE

    def run(images: np.ndarray) -> dict[str, torch.Tensor]:
        # this is a property of the module, so it is tested in the module's own precision
        context: AbstractContextManager | None = nullcontext() if exact else None
        return encoder._pooled(images, context)

    before = _random_state(device)
    pair = run(examples[:2])
    if bad := [name for name, rows in pair.items() if not rows.isfinite().all()]:
        raise UserError(
            f"Layer {bad[0]} of {type(encoder.module).__name__} has non-finite values; look for NaN in the weights, or "
            "values that overflow the number format."
        )
    drawn = _random_state(device) != before
    again = run(examples[:2])
    # a separate generator, a counter or a moving average leaves no trace in the global state; a CPU repeats the same
    # sums bit by bit
    drawn = drawn or (device.type == "cpu" and not all(torch.equal(pair[name], again[name]) for name in pair))
    for rerun in (again, *(run(examples[:2]) for _ in range(REPEATS - 1 if drawn else 0))):
        _compare(encoder, pair, rerun, 0.0 if drawn else tolerance, "the same batch is run again", drawn)
    if drawn:
        warnings.warn(
            f"{type(encoder.module).__name__} draws random numbers in evaluation mode, or is not reproducible bit by "
            f"bit; {REPEATS} runs gave the same features, but rare events would go unnoticed.",
            stacklevel=6,
        )
    # Two of the others are a dark and a bright image of low contrast: minimum, maximum and mean of a batch differ with
    # them, and are different again for each alone. They lie outside the range of finished floats, whose limits are
    # unknown.
    ends = (24, 191) if examples.dtype == np.uint8 else (2 * examples.min(), 3 * examples.max())
    faint = np.stack([examples[0] / 4 + end for end in ends]).astype(examples.dtype)
    company = run(np.concatenate([examples[2:], examples[1::-1], faint]))
    moved = {name: rows[[2, 1]] for name, rows in company.items()}
    _compare(encoder, pair, moved, tolerance, "other images are in its batch", drawn)
    for name, rows in company.items():
        if encoder._layouts[name].pool != "cls" and torch.equal(rows, rows[:1].expand_as(rows)):
            warnings.warn(
                f"Layer {name} of {type(encoder.module).__name__} has the same features for {len(rows)} different "
                "images (a mask, a constant, or units that are never active).",
                stacklevel=6,
            )
    what = f"{type(encoder.module).__name__} fails on a batch of one image"
    with explained(what, f"a data set's last batch may be one; {_hint(encoder.module, drawn)}", named=True):
        alone = [run(faint[k : k + 1]) for k in (0, 1)]
    alone_too = {name: torch.cat([rows[name] for rows in alone]) for name in company}
    together = {name: rows[3:] for name, rows in company.items()}
    _compare(encoder, together, alone_too, tolerance, "it is alone in its batch", drawn)
    used = encoder.module
    if unused is not None:
        later = pair
        encoder.module = unused
        with suppress(Exception):  # parts that cannot be copied
            run(examples[2:])
            later = run(examples[:2])
        encoder.module = used
        _compare(encoder, pair, later, tolerance, "the module has processed other images before", True)


def check_tokens(encoder: Any, examples: np.ndarray, told: bool) -> None:
    """Refuse tokens whose order does not match their number.

    At the shallowest layer with special tokens, changing the upper left corner of an image should change the position
    after them most, and the lower right corner the last one. At the shallowest layer of tokens, a corner should change
    few positions, not few channels; this is tested if the user did not give the axes (`told`) and the number of
    channels could be that of positions.
    """
    tokens = [(name, layout) for name, layout in encoder._layouts.items() if "T" in layout.axes]
    for depth, (name, layout) in enumerate(tokens):
        open_question = depth == 0 and not told and name not in encoder._widened
        unclear = open_question and is_grid(layout.width, encoder._sides)
        if layout.prefix_tokens or unclear:
            h_BTD = _with_changed_corners(encoder, examples, name)
            change_TD = h_BTD[1] - h_BTD[0]
            peaks = [float(c.max() / c.mean()) for c in (change_TD.norm(dim=1), change_TD.norm(dim=0))]
            if unclear and peaks[1] > 2 * peaks[0]:
                raise UserError(
                    f"Layer {name} of {type(encoder.module).__name__}: a corner of an image changes few entries of the "
                    f"last axis of {layout.width}, which seems to be positions; give axes=BDT, or axes=BTD if not."
                )
            if layout.prefix_tokens:
                _check_order(encoder, name, h_BTD)
                return


def _with_changed_corners(encoder: Any, examples: np.ndarray, name: str) -> torch.Tensor:
    """A layer's tokens for an image, and for the same image with a changed upper left or lower right corner."""
    layout = encoder._layouts[name]
    across = 2 * round(layout.positions**0.5)
    height, width = (max(1, side // across) for side in encoder._sides)
    pictures = np.stack([examples[0]] * 3)
    corners = (np.s_[:height, :width], np.s_[-height:, -width:])
    for k, (rows, columns) in enumerate(corners, start=1):
        part = (rows, columns) if encoder._scales else (slice(None), rows, columns)
        pictures[k][part] = examples[1][part]
    kept: list[torch.Tensor] = []
    with encoder._hooked([name], lambda _, output: kept.append(layout.tokens(output))):
        encoder._run(pictures)
    return kept[0]


def _check_order(encoder: Any, name: str, h_BTD: torch.Tensor) -> None:
    layout = encoder._layouts[name]
    for k, expected in ((1, layout.prefix_tokens), (2, h_BTD.shape[1] - 1)):
        change_T = (h_BTD[k] - h_BTD[0]).norm(dim=1)
        most = int(change_T.argmax())
        if change_T[most] > 2 * change_T[expected]:
            raise UserError(
                f"Layer {name} of {type(encoder.module).__name__}: the {'upper left' if k == 1 else 'lower right'} "
                f"corner of an image changes position {most} of {h_BTD.shape[1]} most, so its {layout.prefix_tokens} "
                "special tokens are not in front; reorder them in a custom submodule."
            )


def check_prepare(
    prepare: Callable[[np.ndarray], Any], pictures: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> None:
    """Refuse a preparation that is not deterministic: a random crop, a counter."""
    cpu = torch.device("cpu")
    before = _random_state(cpu)
    for repeat in range(REPEATS):
        for picture, first in zip(pictures, made, strict=True):
            again = np.asarray(prepare(picture))
            if again.shape != first.shape or not np.array_equal(again, first, equal_nan=again.dtype.kind == "f"):
                raise UserError(
                    "prepare returns different results for the same image (a random crop or flip, a counter?); give "
                    "the evaluation preparation."
                )
        if repeat == 0 and _random_state(cpu) == before:
            return


def _compare(
    encoder: Any, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float, when: str, drawn: bool
) -> None:
    for name in a:
        size = torch.maximum(a[name].abs(), a[name].abs().nanmedian())
        off = (a[name] - b[name]).abs()
        # NaN on one side fails; NaN or infinity on both sides is refused by the writer
        same = (a[name] == b[name]) | (a[name].isnan() & b[name].isnan())
        wrong = ~(off <= tolerance * size + FLOOR) & ~same
        if wrong.any():
            worst = float((off / size.clamp_min(1e-30))[wrong].max())
            raise UserError(
                f"Layer {name} of {type(encoder.module).__name__} has different features for the same image when "
                f"{when} (relative difference {worst:.1g}), but features must depend on the image alone; "
                f"{_hint(encoder.module, drawn)}."
            )


def _hint(module: torch.nn.Module, drawn: bool) -> str:
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        return f"{training[0]} stays in training mode after eval(): look for an overridden train()"
    if drawn:
        return (
            "it draws random numbers in evaluation mode, or keeps state between calls: pass training=self.training to "
            "torch.nn.functional.dropout, fix sampled noise, and do not update buffers"
        )
    return (
        "look for statistics over the batch (a norm with track_running_stats=False, a mean over axis 0) and for "
        "squeeze() without an axis"
    )


def _random_state(device: torch.device) -> tuple[Any, ...]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  (the global state is what a module may draw from)
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    return (torch.get_rng_state().numpy().tobytes(), cuda, random.getstate(), numpy_state[1].tobytes(), numpy_state[2:])


def settle_unloaded(encoder: Any, examples: np.ndarray, loaded: Loaded) -> None:
    """Refuse missing parameters on which a chosen layer depends; set the others to 0.

    Dependence is tested by setting them to NaN: a layer whose features do not change does not use them. They are set to
    0 so that the hash of the weights does not depend on their random initialisation.
    """
    own = encoder.module.state_dict().items()
    state = {name: value for name, value in own if WRAPPERS.sub("", name) in loaded.missing}
    poison = list(state.values())
    if fixed := [name for name, value in state.items() if not (value.is_floating_point() or value.is_complex())]:
        raise UserError(_needed(loaded, fixed))
    before = encoder._pooled(examples[:2])
    kept = [value.clone() for value in poison]
    with torch.no_grad():
        for value in poison:
            value.fill_(float("nan"))
    try:
        after = encoder._pooled(examples[:2])
        same = all(torch.equal(before[name], after[name]) for name in before)
    except Exception:  # NaN may break a computation that uses it
        same = False
    with torch.no_grad():
        for value, old in zip(poison, kept, strict=True):
            value.copy_(torch.zeros_like(old) if same else old)
    if not same:
        raise UserError(_needed(loaded, list(state)))


def _needed(loaded: Loaded, names: list[str]) -> str:
    return (
        f"{loaded.source} lacks weights that the chosen layers depend on ({some(names)}; now random); {loaded.advice}."
    )
