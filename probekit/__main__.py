"""The command `probekit`, also as `python -m probekit`."""

import signal
import sys

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback
from probekit.cli.main import main  # noqa: E402

signal.signal(signal.SIGINT, _before)

if __name__ == "__main__":
    sys.exit(main())
