"""The ranges of numeric flags that are no fields of a training configuration, which carries its own (`option`)."""

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from igpt_model.ranges import (
    COUNT,
    COUNT_OR_NONE,
    INCHES,
    LARGE,
    NOT_NEGATIVE,
    POINTS,
    POSITIVE,
    RATE,
    SEED,
    SEEDS,
    SHARE,
    Range,
    check_range,
)

_SIDE = Range(1, 65_536)
# flags are spelled alike everywhere, so that a name has one range
RANGES = {
    "Cs": POSITIVE,
    "batch_size": COUNT,
    "classes": Range(2, LARGE),
    "crop": _SIDE,
    "each": Range(1, 1000),
    "font_size": POINTS,
    "greedy_width": Range(0, 10_000_000),
    "height": INCHES,
    "keep": SHARE,
    "level": Range(0, 100),
    "limit": COUNT,
    "lr": RATE,
    "mean": Range(-1e6, 1e6),
    "n": Range(1, 100_000),
    "n_embd": Range(1, 65_536),
    "n_layer": Range(1, 1000),
    "prefix_tokens": Range(0, 1_000_000),
    "per_class": COUNT,
    "probe_every": COUNT_OR_NONE,
    "probe_images": COUNT,
    "ranks": Range(1, 1_000_000),
    "rate": POSITIVE,
    "resize": _SIDE,
    "resolution": Range(0, 4096),
    "rows": Range(1, 1e13),
    "sample_every": COUNT_OR_NONE,
    "sample_images": Range(1, 100_000),
    "scale": Range(1, 64),
    "seconds": Range(0, 86_400, above=True),
    "seed": SEED,
    "seeds": SEEDS,
    "std": POSITIVE,
    "steps": COUNT,
    "temperature": NOT_NEGATIVE,
    "test_rows": Range(1, 1e13),
    "threshold": SHARE,
    "top_k": COUNT,
    "train_rows": COUNT_OR_NONE,
    "value_range": Range(-1e15, 1e15),
    "width": INCHES,
    "window": Range(0, 10_000),  # of a study: 0 concatenates none
    "workers": Range(0, 1024),
    "ylim": Range(-1e6, 1e6),
}


def check_numbers(given: inspect.BoundArguments) -> None:
    """Check the numbers of a command, those in its dataclasses included.

    Raises
    ------
    UserError
        One is outside its flag's range; the message names both.
    """
    for name, value in given.arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            for one in fields(value):
                if one.metadata.get("range") is None:  # those were checked when the dataclass was made
                    _check(one.name, getattr(value, one.name))
        else:
            _check(name, value)


def _check(name: str, value: Any) -> None:
    numbers = value if isinstance(value, tuple | list) else (value,)
    if name in RANGES and all(isinstance(number, int | float) for number in numbers):
        check_range(f"--{name.replace('_', '-')}", numbers, RANGES[name])
