"""The default suite once with another Python, or with the oldest dependencies that pyproject.toml allows.

    python .ci/versions.py python3.13
    python .ci/versions.py python3.11 --oldest

Makes the environment build/venv-NAME, or takes it as it is; words that follow go to pytest. With another Python it is
that of `make setup`; with the oldest dependencies it has no timm, so that the tests of timm's encoders are skipped.
oldest.txt has the lower bounds of pyproject.toml and what they need, for which pip alone searches too long:
`uv pip compile --python-version 3.11 --resolution lowest-direct --extra dev pyproject.toml`.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".ci" / "oldest.txt"


def check_oldest() -> None:
    """Refuse a list that does not pin the lower bounds of pyproject.toml, as after a bound was raised."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("hf", "compress", "openai", "datasets")
    wanted = [*project["dependencies"], *(line for name in names for line in extras[name])]
    pins = dict(line.split("==") for line in OLDEST.read_text().splitlines() if "==" in line)
    for name, bound in (found.groups() for line in wanted if (found := re.match(r"([\w-]+)>=([\d.]+)", line))):
        if re.sub(r"(\.0)+$", "", pins[name]) != re.sub(r"(\.0)+$", "", bound):
            raise SystemExit(
                f"{OLDEST.name} pins {name} {pins[name]}, but pyproject.toml allows {bound}: make it anew."
            )


def main() -> int:
    """Make the environment and run the suite in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--oldest", action="store_true")
    asked, words = parser.parse_known_args()
    version = subprocess.run([asked.python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    folder = ROOT / "build" / f"venv-{version}{'-oldest' if asked.oldest else ''}"
    python = folder / "bin" / "python"
    if asked.oldest:
        check_oldest()
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
