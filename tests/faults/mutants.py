"""Mutation spot check: does a test notice a changed operator, comparison, condition or number?

    python tests/faults/mutants.py probekit.results.metrics tests/probekit/results/test_metrics.py [--mutants 20]

Mutants are drawn at random from all of a module; each is tried in a forked process, where the module is imported from
its changed source. Prints those that no test noticed. Equivalent changes (a buffer's size) are for the reader to judge.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 600
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
}  # fmt: skip


def places(tree: ast.AST) -> list[ast.AST]:
    """The nodes that can be changed."""
    found = []
    for node in ast.walk(tree):
        operator = getattr(node, "op", None) or (node.ops[0] if isinstance(node, ast.Compare) else None)
        number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
        if type(operator) in OTHER or number or isinstance(operator, ast.Not):
            found.append(node)
    return found


def changed(source: str, place: int) -> tuple[ast.Module, str]:
    """The module with one change, and what it is."""
    tree = ast.parse(source)
    node = places(tree)[place]
    before = ast.unparse(node)
    if isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        node.op = OTHER[type(node.op)]()
    ast.fix_missing_locations(tree)
    return tree, f"line {node.lineno}: {before} -> {ast.unparse(node)}"


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from a changed tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name, path, target=None):
        found = importlib.util.spec_from_loader(name, self, origin=str(self.path)) if name == self.name else None
        if found is not None:
            found.has_location = True
        return found

    def exec_module(self, module):
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def noticed(name: str, path: Path, tree: ast.Module, tests: list[str]) -> bool:
    """Whether the tests fail (or hang) with the changed module."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, Finder(name, path, tree))
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])))
    return os.waitpid(child, 0)[1] != 0


def main() -> int:
    """Try the mutants that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--mutants", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for known in ("torch", "scipy.stats", "sklearn.linear_model", "pandas", "h5py", "pytest", "hypothesis"):
        importlib.import_module(known)
    path = ROOT / f"{asked.module.replace('.', '/')}.py"
    source = path.read_text()
    chosen = random.Random(asked.seed).sample(range(len(places(ast.parse(source)))), k=asked.mutants)
    if noticed(asked.module, path, ast.parse(source), asked.tests):
        sys.exit(f"{' '.join(asked.tests)} fail without a change")
    survivors = []
    for place in chosen:
        tree, words = changed(source, place)
        if not noticed(asked.module, path, tree, asked.tests):
            survivors.append(words)
            print(f"not noticed: {asked.module}, {words}", flush=True)
    print(f"{asked.module}: {asked.mutants - len(survivors)} of {asked.mutants} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
