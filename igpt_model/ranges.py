"""Ranges of numbers, declared once for a field of settings or a flag of a command, and checked for every value."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from igpt_model.arguments import check_fields
from igpt_model.errors import UserError

LARGE = 1_000_000_000
"""The largest accepted count (steps, images, rows)."""


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, inclusive; `above` and `below` exclude the respective end."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        # NaN compares false, so it is not in any range, and neither is infinity
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return bool(low and high and value not in (math.inf, -math.inf))

    def __str__(self) -> str:
        if self.most == math.inf:
            words = f"above {_plain(self.least)}" if self.above else f"of at least {_plain(self.least)}"
            return "finite" if self.least == -math.inf else words
        if self.above and self.below:
            return f"between {_plain(self.least)} and {_plain(self.most)}"
        if self.above:
            return f"above {_plain(self.least)}, at most {_plain(self.most)}"
        if self.below:
            return f"of at least {_plain(self.least)}, below {_plain(self.most)}"
        return f"from {_plain(self.least)} to {_plain(self.most)}"


COUNT = Range(1, LARGE)
COUNT_OR_NONE = Range(0, LARGE)
"""A count, where 0 means "none" or "the default"."""
SEED = Range(0, 2**32 - 1)
POSITIVE = Range(0, 1e15, above=True)
NOT_NEGATIVE = Range(0, 1e15)
SHARE = Range(0, 1)
RATE = Range(0, 1000, above=True)
"""A learning rate."""
WEIGHT = Range(0, 1e6)
"""A weight decay, or the weight of a loss."""
WORKERS = Range(0, 1024)
SEEDS = Range(1, 10_000)
"""A number of seeds."""
INCHES = Range(2, 40)
"""A side of a figure."""
POINTS = Range(4, 40)
"""Font size in a figure."""


def option(default: Any, help: str, group: str | None = None, allowed: Range | None = None) -> Any:
    """Return a dataclass field with its default, its help text and group on the command line, and its range."""
    return field(default=default, metadata={"help": help, "group": group, "range": allowed})


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass: choices by their `Literal` types, numbers by their ranges.

    Raises
    ------
    UserError
        The message names the setting, the value and what is allowed.
    """
    check_fields(settings)
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            raise UserError(f"{name} is {getattr(settings, name)!r}; choose {' or '.join(get_args(hint))}.")
    for one in fields(settings):
        if one.metadata.get("range") is not None:
            check_range(one.name, getattr(settings, one.name), one.metadata["range"])


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Raise for a number, or one of several, that is not in the range; None is accepted.

    Raises
    ------
    UserError
        The message names the setting, the value and the range.
    """
    if isinstance(value, Iterable) and not isinstance(value, str):
        for one in value:
            check_range(name, one, allowed)
    elif value is not None and (not isinstance(value, int | float) or value not in allowed):
        raise UserError(f"{name} is {_plain(value)}; expected a number {allowed}.")


def check_at_least(**numbers: tuple[int | None, int]) -> None:
    """Raise for a number below its minimum or absurdly large: `check_at_least(limit=(limit, 1))`."""
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise UserError(f"{name} is {number}; expected at least {least}.")
        check_range(name, number, Range(least, LARGE))


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # str() raises for integers of more than a few thousand digits
        return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    return f"{value:g}" if isinstance(value, float) else repr(value)
