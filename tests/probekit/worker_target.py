"""Work for a helper: say who you are, then go on for longer than any test."""

import os
import time
from pathlib import Path


def wait(path: str) -> None:
    partial = Path(f"{path}.partial")
    partial.write_text(str(os.getpid()))
    partial.rename(path)
    time.sleep(300)
