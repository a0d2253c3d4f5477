"""The error classes of igpt_model, which probekit shares."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from igpt_model.errors import UserError, explained, first_line, shortened

__all__ = ["UserError", "did_you_mean", "explained", "first_line", "shortened", "some"]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`" Did you mean knn?"` for a name that resembles a known one, ignoring case; otherwise ""."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(given.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]}?" if near else ""


def some(names: Sequence[object], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
