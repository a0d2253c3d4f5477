"""probekit's user error is igpt_model's: one class, one exit code."""

from igpt_model.errors import UserError

__all__ = ["UserError", "first_line"]


def first_line(error: BaseException) -> str:
    """What another library's error says first, to stand inside a sentence; its class's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
