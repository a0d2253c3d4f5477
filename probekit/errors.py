"""probekit's user error is igpt_model's: one class, one exit code."""

from igpt_model.errors import UserError

__all__ = ["UserError"]
