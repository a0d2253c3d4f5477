"""What conftest.py promises of property tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRAWN_TWICE = """
from hypothesis import given, settings, strategies as st
before, after = [], []
values = st.tuples(st.integers(), st.floats(), st.text(), st.binary())

@settings(max_examples=100)
@given(values)
def test_before(value):
    before.append(repr(value))

def test_a_module_is_imported():
    import literals

@settings(max_examples=100)
@given(values)
def test_after(value):
    after.append(repr(value))

def test_alike():
    assert len(before) >= 100
    assert before == after
"""


@pytest.mark.parametrize("service", [{}, {"CI": "true", "GITHUB_ACTIONS": "true"}], ids=["terminal", "service"])
def test_the_examples_of_a_seed_do_not_depend_on_what_was_imported(tmp_path, service):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_drawn.py").write_text(DRAWN_TWICE)
    literals = [value for n in range(50, 150) for value in (n**3, n + 0.5, f"word {n}", b"%d" % n)]
    (tmp_path / "literals.py").write_text(f"VALUES = {literals}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "test_drawn.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    environment |= {"PYTHONPATH": str(tmp_path), **service}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "4 passed" in ran.stdout
