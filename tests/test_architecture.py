"""The architecture holds: imports between folders, lazy imports, file sizes, documented public names."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from inspect import getsource
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("igpt_model", "probekit", "analyses")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OWN_FILES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

# a module imports only from the folders listed for it (longest prefix wins) and from the foundation
ARROWS = {
    "igpt_model": {"igpt_model"},
    "analyses": {"analyses", "probekit", "igpt_model"},
    "probekit": {"probekit"},
    "probekit.runtime": {"probekit.runtime"},
    "probekit.datasets": {"probekit.datasets", "probekit.runtime"},
    # the released token arrays are turned back into images by the palette's own scaling
    "probekit.datasets.openai_tokens": {"probekit.datasets", "probekit.runtime", "igpt_model.palette"},
    "probekit.encoders": {"probekit.encoders", "probekit.runtime"},
    "probekit.encoders.igpt": {"probekit.encoders", "probekit.runtime", "igpt_model"},
    # Hugging Face's ImageGPT is an iGPT: it is converted and run as one
    "probekit.encoders.hf": {"probekit.encoders", "probekit.runtime", "igpt_model"},
    "probekit.features": {"probekit.features", "probekit.encoders", "probekit.datasets", "probekit.runtime"},
    "probekit.solver": {"probekit.solver", "probekit.runtime"},
    "probekit.selection": {"probekit.selection", "probekit.solver", "probekit.runtime"},
    "probekit.probes": {"probekit.probes", "probekit.selection", "probekit.solver", "probekit.runtime"},
    "probekit.results": {"probekit.results", "probekit.runtime"},
    "probekit.reports": {"probekit.reports", "probekit.results", "probekit.runtime"},
    "probekit.evaluate": {
        "probekit.evaluate",
        "probekit.features",
        "probekit.encoders",
        "probekit.datasets",
        "probekit.selection",
        "probekit.probes",
        "probekit.solver",
        "probekit.results",
        "probekit.runtime",
    },
    "probekit.cli": {"probekit", "igpt_model"},
}
FOUNDATION = {
    f"igpt_model.{name}"
    for name in (
        *("arguments", "errors", "hashing", "atomic", "checked_json", "differences", "locks", "ranges", "devices"),
        *("process_group", "read_ahead", "whole_files"),
    )
}
LAZY = {
    "matplotlib",
    "cuml",
    "datasets",
    "pyarrow",
    "transformers",
    "timm",
    "tensorboard",
    "torch.utils.tensorboard",
}
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}


# tests of several modules at once
CROSSING = {
    "tests/probekit/datasets/test_forms.py": "one data set in seven forms",
    "tests/probekit/encoders/test_parity.py": "images and layers of every library's models",
    "tests/probekit/test_public_api.py": "the public names, with arguments of wrong kinds",
    "tests/probekit/test_notebook.py": "the public names, as a notebook uses them",
}
LONGEST_CHAIN = 15
"""Modules of the library of which each imports the next, also inside functions; imports for types do not count."""
REPLACED = 28
"""Most attributes of modules and classes that tests may replace."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, only_at_import: bool = False, root: Path = ROOT, for_types: bool = True) -> set[str]:
    """Modules that `path` imports; with `only_at_import`, leave out those inside functions and TYPE_CHECKING.

    Without `for_types`, leave out those under TYPE_CHECKING alone.
    """
    module = module_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        type_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if type_only and (only_at_import or not for_types):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            is_module = [(root / Path(*name.split("."))).with_suffix(".py").exists() for name in names]
            found.update(name if known else module for name, known in zip(names, is_module, strict=True))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def allowed_for(module: str) -> set[str]:
    return ARROWS[max((folder for folder in ARROWS if within(module, folder)), key=len)] | FOUNDATION


def test_the_arrow_check_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "probekit" / "probes" / "solver.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("def f():\n    from ..features import store\n    import h5py\n")
    assert imports(wrong, root=tmp_path) == {"probekit.features", "h5py"}
    assert not any(within("probekit.features", folder) for folder in allowed_for("probekit.solver.solve"))


def test_modules_import_only_from_the_folders_listed_for_them():
    wrong = [
        f"{module_name(path)} may not import {name}"
        for path in SOURCES
        for name in sorted(imports(path))
        if any(within(name, package) for package in PACKAGES)
        and not any(within(name, folder) for folder in allowed_for(module_name(path)))
    ]
    assert not wrong


def folder_of(module: str) -> str:
    """The part of the layout that a module belongs to: a folder of `probekit`, or a package as a whole."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "probekit" else parts[0]


def test_folders_import_one_another_in_one_direction_and_at_most_seven_levels_deep():
    below: dict[str, set[str]] = {}
    for path in SOURCES:
        module = module_name(path)
        named = {name for name in imports(path) if any(within(name, package) for package in PACKAGES)}
        below.setdefault(folder_of(module), set()).update(folder_of(name) for name in named)
    graph = {folder: own - {folder, "probekit"} for folder, own in below.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError where folders form a circle
    levels: dict[str, int] = {}
    for folder in order:
        levels[folder] = 1 + max((levels[name] for name in graph.get(folder, ())), default=0)
    assert levels["probekit.cli"] <= 7, levels


def test_modules_form_no_circle_and_no_long_chain():
    modules = {module_name(path): path for path in SOURCES}
    graph = {}
    for module, path in modules.items():
        imported = imports(path, for_types=False)
        named = {name if name in modules else name.rpartition(".")[0] for name in imported}
        graph[module] = (named & modules.keys()) - {module}
    levels: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():  # raises CycleError where modules form a circle
        levels[module] = 1 + max((levels[name] for name in graph[module]), default=0)
    deep = {module: level for module, level in levels.items() if level > LONGEST_CHAIN and within(module, "probekit")}
    assert not deep


def test_modules_import_from_the_module_that_defines_a_name_not_from_the_package_for_users():
    """`probekit` names everything: who imports from it depends on everything."""
    users = {module_name(path): imports(path) for path in SOURCES if path.parts[len(ROOT.parts)] == "probekit"}
    assert [module for module, named in users.items() if "probekit" in named] == ["probekit.cli.main"]  # its version


def test_heavy_packages_are_imported_where_they_are_used():
    heavy = [
        f"{module_name(path)} imports {name} at module level; import inside the function that needs it"
        for path in SOURCES
        for name in sorted(imports(path, only_at_import=True))
        if any(within(name, lazy) for lazy in LAZY)
    ]
    assert not heavy


def test_only_features_imports_h5py():
    users = {module_name(path) for path in SOURCES if "h5py" in imports(path)}
    assert users, "no module imports h5py, so this test checks nothing"
    assert all(within(user, "probekit.features") for user in users), users


def test_only_the_json_reader_parses_json():
    """Whatever is read is limited, UTF-8 and checked in `igpt_model.checked_json`."""
    found = {
        module_name(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "loads") and ast.unparse(node.value) == "json"
    }
    assert found == {"igpt_model.checked_json"}


def test_only_the_objective_knows_how_C_relates_to_l2():
    """DESIGN, section 1: a quotient 1 / (C * n) or 1 / (l2 * n) is written nowhere else."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.BinOp):
                product = {part.id for part in ast.walk(node.right) if isinstance(part, ast.Name)}
                one = isinstance(node.left, ast.Constant) and node.left.value == 1
                if one and isinstance(node.right.op, ast.Mult) and product & {"C", "Cs", "l2", "l2s"}:
                    found.add(module_name(path))
    assert found == {"probekit.solver.objective"}


def test_only_the_palette_knows_the_scale_of_pixels():
    """DESIGN, section 1: x / 127.5 - 1 and its inverse have one home."""
    found = {
        module_name(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value == 127.5
    }
    assert found == {"igpt_model.palette"}


def test_igpt_model_needs_four_packages_only():
    third_party = set()
    for path in (ROOT / "igpt_model").rglob("*.py"):
        third_party |= {name.partition(".")[0] for name in imports(path, only_at_import=True)}
    third_party -= {"igpt_model", *sys.stdlib_module_names}
    assert third_party <= {"torch", "numpy", "PIL", "safetensors", "xxhash"}, third_party


@pytest.mark.parametrize("command", ["import probekit", "import probekit.cli.main"])
def test_importing_is_light(command):
    heavy = ["torch", "matplotlib", "transformers", "cuml", "timm", "tensorboard", "sklearn", "pandas"]
    code = f"import sys; {command}; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "[]"


def test_files_are_short_and_named_for_what_they_hold():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in OWN_FILES}
    most = {name: 700 if name.startswith(("tests", "benchmarks")) else 600 for name in lines}  # tests have tables
    assert not {name: count for name, count in lines.items() if count > most[name]}, "split them along their parts"
    assert not [name for name in lines if Path(name).name in FORBIDDEN_NAMES], "these names say nothing"


@pytest.mark.parametrize("package", ["igpt_model", "probekit"])
def test_public_names_resolve_and_are_documented(package):
    module = import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"{package}.{name} has no docstring"


def test_modules_and_their_public_functions_and_classes_are_documented():
    bare = [
        f"{module_name(path)}: {getattr(node, 'name', 'the module')}"
        for path in SOURCES
        for node in [tree(path), *tree(path).body]
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and not getattr(node, "name", "").startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_functions_are_not_hidden_by_submodules_of_the_same_name():
    code = (
        "import importlib; importlib.import_module('probekit.evaluate.sweep'); import probekit; "
        "print(callable(probekit.sweep))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "True"


def test_the_functions_from_an_image_to_a_point_are_where_the_page_says():
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    listed = re.findall(r"^\| \d+ \| `([\w.]+):([\w.]+)` \| (\d+) \|", page, flags=re.MULTILINE)
    assert 20 < len(listed) <= 40
    lines = [len(getsource(attrgetter(name)(import_module(module))).splitlines()) for module, name, _ in listed]
    # the counts are those of the day the page was written: functions may grow a little before it is corrected
    assert sum(lines) == pytest.approx(sum(int(count) for *_, count in listed), rel=0.1)


def test_tests_mirror_the_modules():
    """A test file is named for a module in the same folder of the package, perhaps with an aspect after it."""
    stray = []
    for path in sorted((ROOT / "tests").glob("*/**/test_*.py")):
        folder = ROOT / path.parent.relative_to(ROOT / "tests")
        if folder.relative_to(ROOT).parts[0] not in ("probekit", "igpt_model"):
            continue
        name = path.stem.removeprefix("test_")
        modules = {module.stem for module in folder.glob("*.py")} | {part.name for part in folder.glob("*/")}
        if not any(name == module or name.startswith(f"{module}_") for module in modules):
            stray.append(str(path.relative_to(ROOT)))
    assert sorted(stray) == sorted(CROSSING), "name the test for the module that it tests, or list it in CROSSING"


def test_tests_replace_few_attributes():
    """What a test needs is passed in where possible: a replaced attribute breaks when code moves, or checks nothing."""
    replaced = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name != "fake_cuda.py":  # the stand-in of torch's CUDA functions
            # as text, so that programs run by tests count as well
            calls = re.findall(r"(?:\w\.setattr|patch\.object)\((.+)", path.read_text())
            replaced += [(str(path.relative_to(ROOT)), call) for call in calls if "\\w" not in call]
    private = [call for call in replaced if re.search(r"""[."']_[a-zA-Z]""", call[1])]
    assert len(replaced) <= REPLACED, replaced
    assert not private, private


def test_tables_are_written_by_the_functions_that_escape_them():
    """A name of a layer or a series must not become a formula, a command or a column."""
    writers = {"to_csv": {"runtime/escape.py"}, "to_latex": {"reports/tables.py"}, "to_markdown": {"reports/tables.py"}}
    for path in sorted((ROOT / "probekit").rglob("*.py")):
        own = str(path.relative_to(ROOT / "probekit"))
        used = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert all(own in writers[name] for name in used & set(writers)), own
