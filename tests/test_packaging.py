"""What is installed: the wheel holds what the commands need, and every version that is installed is pinned."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_wheel_holds_both_packages_their_data_and_nothing_else(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for package in ("igpt_model", "probekit", "analyses", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True, timeout=1200)
    (wheel,) = out.glob("igpt_probekit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"igpt_model", "probekit", "igpt_probekit"}
    data = {p for package in ("igpt_model", "probekit") for p in (ROOT / package).rglob("*") if p.is_file()}
    data = {str(p.relative_to(ROOT)) for p in data if "__pycache__" not in p.parts and not p.name.startswith(".")}
    assert any("pretrained" in name and name.endswith("weights.safetensors") for name in data)
    assert data <= names, sorted(data - names)
    assert "probekit = probekit.__main__:main" in points


def test_the_oldest_versions_that_are_tried_are_the_lower_bounds():
    """After a bound was raised: uv pip compile, as .ci/versions.py says."""
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = {named(name): Version(version) for name, _, version in (line.partition("==") for line in lines) if version}
    extras = [line for name in ("hf", "openai", "datasets") for line in PROJECT["optional-dependencies"][name]]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert Version(next(s.version for s in wanted.specifier if s.operator == ">=")) == pins[named(wanted.name)]


def test_every_requirement_is_pinned_with_those_of_its_own():
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {named(line.partition("==")[0]) for line in lines if "==" in line}
    assert "torch==2.13.0" in lines
    if Version(version("torch")).public != "2.13.0":
        pytest.skip("other versions than the pinned ones are installed, which need other packages")
    extras = PROJECT["optional-dependencies"]
    todo = [Requirement(line) for line in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"], *extras["hf"]]]
    seen = {named(PROJECT["name"])}
    while todo:
        requirement = todo.pop()
        name, marker = named(requirement.name), requirement.marker
        if name in seen or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue  # of torch's CUDA build, which pins each itself
        assert name in pinned, f"{name} has no version in constraints.txt"
        try:
            todo += [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue  # not installed here: what it needs is not known
    assert len(seen) > 50


def named(name):
    """A distribution's name as package indexes compare it."""
    return name.strip().lower().replace("_", "-").replace(".", "-")
