"""For the reference pages: what the docstrings leave to the signature, and text that is not a type as a description.

Griffe gives names that share a description (`tol, max_iter : of the solver`) the default of the first, and shows the
text behind the colon in the column of types.
"""

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*) : (.+)$", re.M)
TABLES = (griffe.DocstringSectionParameters, griffe.DocstringSectionOtherParameters, griffe.DocstringSectionAttributes)


class Signatures(griffe.Extension):
    """Corrects the parsed docstrings of a package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Correct those of all its members."""
        self._correct(pkg)

    def _correct(self, item: griffe.Object) -> None:
        for member in item.members.values():
            if not member.is_alias:
                self._correct(member)  # type: ignore[arg-type]
        if item.docstring is None or not (item.is_function or item.is_class):
            return
        said = {
            name: text for names, text in ENTRY.findall(item.docstring.value) for name in [names, *names.split(", ")]
        }
        signature = {f"{'*' * _stars(p)}{p.name}": p for p in item.parameters}  # type: ignore[attr-defined]
        for section in item.docstring.parsed:
            for entry in section.value if isinstance(section, TABLES) else ():
                # a description that goes on in the middle of a sentence, or none: the text was no type
                if entry.name in said and not entry.description[:1].isupper():
                    entry.description = f"{said[entry.name]} {entry.description}".strip()
                    entry.annotation = None
                if entry.name in signature:
                    parameter = signature[entry.name]
                    entry.value = parameter.default
                    entry.annotation = entry.annotation or parameter.annotation


def _stars(parameter: griffe.Parameter) -> int:
    kinds = {griffe.ParameterKind.var_positional: 1, griffe.ParameterKind.var_keyword: 2}
    return kinds.get(parameter.kind, 0)  # type: ignore[arg-type]
