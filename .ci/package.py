"""Build the wheel and the sdist, install them into an empty environment, and run the commands that are installed.

Dependencies are those of the interpreter that runs this; probekit itself comes from the wheel alone.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".git", ".venv", "build", "site", "*.egg-info", ".*_cache", "shared")
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
# --ignore-installed: pip would otherwise remove the probekit of the environment that runs this
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index"]
PIP += ["--ignore-installed"]
COMMANDS = (
    "--version",
    "datasets",
    "extract pixels digits --limit 60 --out f.h5",
    "verify f.h5",
    "sweep f.h5 --Cs 0.1 --Cs 1 --out results",
    "report results --out report",
    "table results --out t.tex",
    "demo --pretrained --limit 200 --out demo",
)


def build(source: Path, out: Path, kind: str) -> Path:
    """Build one distribution of a source folder."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)], cwd=source, check=True, capture_output=True, text=True
    )
    return out / done.stdout.split()[-1]


def members(wheel: Path) -> dict[str, int]:
    """The files of a wheel and their checksums, without those that list the others."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if not info.filename.endswith("RECORD")}


def smoke(wheel: Path, scratch: Path) -> None:
    """Install a wheel into an empty environment and run its commands in an empty folder."""
    prefix, work = scratch / f"env-{wheel.parent.name}", scratch / f"work-{wheel.parent.name}"
    work.mkdir()
    subprocess.run([*PIP, "--prefix", str(prefix), str(wheel)], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)}))
    # as PYTHONPATH, site-packages gives its packages, but no editable installation of probekit
    paths = [str(own), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    where = "import probekit, igpt_model; print(probekit.__file__, igpt_model.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=work, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert all(Path(file).is_relative_to(own) for file in found), found
    for words in COMMANDS:
        command = [sys.executable, str(prefix / "bin" / "probekit"), *words.split()]
        done = subprocess.run(command, cwd=work, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"probekit {words}: {done.returncode}\n{done.stderr[-2000:]}"
        print(f"ok: probekit {words}", flush=True)


def main() -> None:
    """Build, compare, install, run."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = scratch / "source"
        shutil.copytree(ROOT, source, ignore=LEFT_OUT)
        for name in ("wheel", "sdist", "again"):
            (scratch / name).mkdir()
        wheel = build(source, scratch / "wheel", "wheel")
        sdist = build(source, scratch / "sdist", "sdist")
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch / "unpacked", filter="data")
        (unpacked,) = (scratch / "unpacked").iterdir()
        again = build(unpacked, scratch / "again", "wheel")
        first, second = members(wheel), members(again)
        different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        assert not different, f"the wheel of the sdist differs: {different[:10]}"
        print(
            f"ok: {wheel.name} {wheel.stat().st_size:,} bytes, {sdist.name} {sdist.stat().st_size:,} bytes", flush=True
        )
        smoke(again, scratch)


if __name__ == "__main__":
    main()
