"""docs/reference: the commands' page is what they say of themselves, and the Python pages have every public name."""

import inspect
import re
import runpy
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import igpt_model
import probekit
from probekit.cli.main import VERBS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


@pytest.mark.skipif(version("cyclopts") < "5", reason="the page is written by cyclopts 5")
def test_the_page_is_up_to_date():
    program = PAGE.with_suffix(".py")
    assert PAGE.read_text() == runpy.run_path(str(program))["reference"](), f"run `python {program}`"


def test_every_verb_and_its_flags_are_on_the_page():
    page = PAGE.read_text()
    assert all(f"## probekit {verb}\n" in page for verb in VERBS)
    assert all(flag in page for flag in ("--greedy-width INT", "--near-duplicates", "--parallel", "--no-masked"))
    assert "#### " not in page
    assert "[`" not in page


def resolve(name):
    """What is called `package.module.name`: the module of this name comes before a function in its package."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise AttributeError(f"there is no {name}")


def listed(package):
    """The names on the reference page of a package, in its order."""
    return re.findall(r"^::: (\S+)$", (DOCS / "reference" / f"{package.__name__}.md").read_text(), re.M)


@pytest.mark.parametrize("package", [probekit, igpt_model])
def test_every_public_name_is_on_the_reference_page_once(package):
    names = listed(package)
    objects = [id(resolve(name)) for name in names]
    assert len(set(objects)) == len(objects)
    missing = [name for name in package.__all__ if id(getattr(package, name)) not in objects]
    assert missing in ([], ["__version__"])


def documented(function):
    """Names of the arguments that a docstring describes, or None if a sentence does for all of them."""
    section = r"^Parameters\n-+\n(.*?)(?:\n\n[A-Z]\w+\n-+\n|\Z)"
    if (found := re.search(section, inspect.getdoc(function) or "", re.S | re.M)) is None:
        return None
    entries = re.findall(r"^([*\w]+(?:, [*\w]+)*)(?: :|$)", found[1], re.M)
    return sorted(name.strip("*") for entry in entries for name in entry.split(", "))


def test_a_docstring_describes_the_arguments_that_there_are():
    functions = {}
    for package in (probekit, igpt_model):
        for name in listed(package):
            value = resolve(name)
            functions |= {name: value} if callable(value) else {}
            methods = vars(value) if inspect.isclass(value) else ()
            functions |= {f"{name}.{m}": getattr(value, m) for m in methods if not m.startswith("_")}
    functions = {name: f for name, f in functions.items() if callable(f)}
    assert len(functions) > 100
    assert [name for name, f in functions.items() if not f.__doc__] == []
    wrong = {
        name: (said, taken)
        for name, f in functions.items()
        if (said := documented(f)) is not None
        and said != (taken := sorted(set(inspect.signature(f).parameters) - {"self", "cls"}))
    }
    assert wrong == {}


@pytest.mark.parametrize("page", sorted(p for d in ("start", "guides", "explanation") for p in (DOCS / d).glob("*.md")))
def test_names_of_our_modules_and_functions_exist(page):
    named = re.findall(r"`((?:probekit|igpt_model|analyses)(?:\.\w+)+)(?=[`(:])", page.read_text())
    for name in named:
        if not name.endswith(".py"):
            resolve(name)
