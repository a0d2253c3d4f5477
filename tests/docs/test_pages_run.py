"""What the pages tell people to type is understood; the README's and the tutorial's lines run, with smaller numbers."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from probekit.cli import demo
from probekit.cli.main import VERBS, app, main
from probekit.cli.usage import prepared

ROOT = Path(__file__).parents[2]
SYNOPSES = ROOT / "docs" / "reference" / "cli.md"
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page != SYNOPSES)]
# the pages' sizes, and those of a test; a flag that is not on the line is added to the verbs named
SMALLER = {
    "--steps": ("4", ()),
    "--n-layer": ("2", ("train",)),
    "--n-embd": ("12", ("train",)),
    "--n-head": ("2", ("train",)),
    "--batch-size": ("8", ("train",)),
    "--probe-every": ("4", ()),
    "--n": ("2", ()),
    "--window": ("2", ("concat", "study")),
    "--greedy-width": ("12", ("concat", "study")),
    "--limit": ("30", ("train", "extract", "study", "demo")),
    "--workers": ("1", ()),
    "--layers": ("*0", ()),
    "--Cs": ("0.001", ("sweep", "concat", "study")),
}


def code(page, kind):
    """Fenced blocks of one kind, in order: (place, content)."""
    return [(m.start(), m[1]) for m in re.finditer(rf"```{kind}\n(.*?)```", page, re.S)]


def smaller(words):
    verb = words[0]
    for flag, (value, verbs) in SMALLER.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        elif verb in verbs:
            words = [*words, flag, value]
    return words


def run_command(line, capsys):
    words = shlex.split(line, comments=True)
    assert words[0].endswith("probekit"), line
    code = main(smaller(words[1:]))
    assert code == 0, f"{line}\n{capsys.readouterr().err}"


def commands(page):
    """Command lines of probekit in the fenced or indented blocks of a page, continued lines joined."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text())
    blocks = re.findall(r"^```\w*\n(.*?)^```|^((?:    \S.*\n)+)", text, re.M | re.S)
    lines = [line.strip().removeprefix("$ ") for pair in blocks for line in "".join(pair).splitlines()]
    return [line for line in lines if re.match(r"(\S*/)?probekit \w", line)]


NAV = [ROOT / "docs" / page for page in re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)]


@pytest.mark.parametrize("page", NAV, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_a_page_begins_with_a_sentence_that_says_what_it_is_for(page):
    heading, *rest = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.S).strip().splitlines()
    first = next(line for line in rest if line.strip())
    assert heading.startswith("# ")
    assert re.match(r"[A-Z`*]|probekit ", first), f"{page}: after its heading comes {first!r}"


def test_files_that_pages_name_exist():
    """Except in logs, which describe the tree of their day."""
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    gone = []
    for page in (page for page in PAGES if "log" not in str(page.relative_to(ROOT))):
        text = page.read_text()
        gone += [(page.name, name) for name in re.findall(r"\btest_\w+\.py", text) if name not in tests]
        named = re.findall(r"\b(?:tests|probekit|igpt_model|benchmarks|analyses)/[\w/]+\.(?:py|csv|sh|c)\b", text)
        gone += [(page.name, name) for name in named if not (ROOT / name).exists()]
    assert not gone


@pytest.mark.parametrize("page", list(filter(commands, PAGES)), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_are_understood(page):
    for line in commands(page):
        for part in re.split(r"\s(?:&&|\||;)\s", line):
            words = shlex.split(part, comments=True)
            if words[0].endswith("probekit"):
                app.parse_args(prepared(app, words[1:]), exit_on_error=False, print_error=False)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "LARGEST_C", 1e-5)
    monkeypatch.setattr(demo, "MOST_WORKERS", 1)


@pytest.mark.slow
def test_the_tutorial(quick, tmp_path, capsys):
    page = (ROOT / "docs" / "start" / "tutorial.md").read_text()
    blocks = [(place, "console", text) for place, text in code(page, "console")]
    blocks += [(place, "python", text) for place, text in code(page, "python")]
    names = {}
    for _, kind, text in sorted(blocks):
        if kind == "python":
            exec(compile(text, "docs/start/tutorial.md", "exec"), names)
        else:
            for line in text.splitlines():
                run_command(line, capsys)
    verbs = {line.split()[1] for _, kind, text in blocks if kind == "console" for line in text.splitlines()}
    assert verbs >= {"demo", "train", "extract", "sweep", "concat", "report", "predict", "study"}
    assert (tmp_path / "tutorial" / "report" / "index.html").is_file()
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 6
    assert (tmp_path / "study" / "report" / "index.html").is_file()


def test_the_readme(quick, capsys):
    page = (ROOT / "README.md").read_text()
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ") and "bin/probekit" in line]
    assert len(lines) == 1
    for line in lines:  # with an encoder and a data set that need no download
        line = line.replace("hf:facebook/dinov2-small", "pixels").replace("cifar10 --root data", "wandering-digits")
        run_command(line, capsys)


def test_make_targets_and_files_in_the_readme_exist():
    page, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = [word for line in re.findall(r"^    make ([a-z -]+)", page, re.M) for word in line.split()]
    assert "demo-pretrained" in targets
    assert all(f"\n{target}:" in makefile for target in targets)
    linked = [*re.findall(r"\]\(([^)#:]+)\)", page), *re.findall(r"python (benchmarks/\w+\.py)", page)]
    assert all((ROOT / name).is_file() for name in linked)
    assert set(re.findall(r"`(?:\.venv/bin/)?probekit (\w+)", page)) <= set(VERBS)
    assert sys.version_info >= (3, 11)
