"""probekit's user error is igpt_model's: one class, one exit code."""

from collections.abc import Iterable
from difflib import get_close_matches

from igpt_model.errors import UserError, first_line, shortened
from igpt_model.ranges import LARGE, Range, check_range

__all__ = ["UserError", "check_at_least", "did_you_mean", "first_line", "shortened"]


def check_at_least(**numbers: tuple[int | None, int]) -> None:
    """Refuse, by its name, a number below its least one or absurdly large: `check_at_least(limit=(limit, 1))`."""
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise UserError(f"{name} is {number}; expected at least {least}.")
        check_range(name, number, Range(least, LARGE))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`" Did you mean knn?"` for a name that resembles a known one, whatever its case; else ""."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(given.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]}?" if near else ""
