"""The one exception that means "the user's input cannot be used"."""


class UserError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with code 2.
    """
