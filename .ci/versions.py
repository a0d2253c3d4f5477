"""The default suite once with another Python, or with the oldest dependencies that pyproject.toml allows.

    python .ci/versions.py python3.13
    python .ci/versions.py python3.11 --oldest

Makes the environment build/venv-NAME, or takes it as it is; words that follow go to pytest (`-n 2 --dist worksteal`).
With another Python it is that of `make setup`; with the oldest dependencies it has no timm, so that the tests of timm's
encoders are skipped. oldest.txt has the lower bounds of pyproject.toml and what they need; pip alone would search too
long for them: `uv pip compile --python-version 3.11 --resolution lowest-direct --no-annotate --no-header --extra dev
pyproject.toml`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".ci" / "oldest.txt"


def main() -> int:
    """Make the environment and run the suite in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--oldest", action="store_true")
    asked, words = parser.parse_known_args()
    version = subprocess.run([asked.python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    folder = ROOT / "build" / f"venv-{version}{'-oldest' if asked.oldest else ''}"
    python = folder / "bin" / "python"
    if not asked.oldest:
        subprocess.run(["make", "setup", f"PYTHON={asked.python}", f"VENV={folder}"], cwd=ROOT, check=True)
    elif not (folder / "made").exists():
        subprocess.run([asked.python, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", OLDEST]
        # torch first and alone, as in the Makefile
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, "-e", f"{ROOT}[dev]"], check=True)
        (folder / "made").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run([python, "-m", "pytest", "-q", *words], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
