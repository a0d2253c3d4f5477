"""The paper's questions asked of one's own results: a module a question, run as `python -m analyses.NAME`."""

import argparse
import sys
from collections.abc import Callable

from igpt_model.errors import UserError


def command_line(page: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is a module's docstring, with its own line breaks."""
    return argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)


def start(main: Callable[[], None]) -> None:
    """Call a module's `main`; a `UserError` is one sentence on stderr and exit code 2, as of probekit's commands."""
    try:
        main()
    except UserError as error:
        print(f"{sys.argv[0].rpartition('/')[2]}: {error}", file=sys.stderr)
        sys.exit(2)
