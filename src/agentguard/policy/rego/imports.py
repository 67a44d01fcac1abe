"""Mistakes: imports and names that the embedded engine and an OPA server resolve differently.

The embedded engine misses rules that are read through an import of the file's own package. Where an
import or a rule has the name of a variable, the engine reads the import or the rule. These checks
rely on one file for each package (``packages.py``), because the engine mixes up the imports of
several files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentguard.policy.rego.syntax_tree import Names, Reader, Span, name_of, used_variables

_ROOTS: Final = frozenset({"data", "input"})
_OPERATORS: Final = frozenset(
    {
        "and",
        "assign",
        "div",
        "eq",
        "equal",
        "gt",
        "gte",
        "internal",
        "lt",
        "lte",
        "minus",
        "mul",
        "neq",
        "or",
        "plus",
        "rem",
    }
)
"""Builtins by whose names OPA calls its operators (``internal.member_2`` is ``in``)."""


class _Import(NamedTuple):
    """One import of a value: the local name, the path of the value, and ``file:line:column``."""

    name: str
    path: Names
    at: str


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each import or name that has another meaning on an OPA server."""
    yield from _imports_of_own_package(reader)
    yield from _reserved_names(reader)
    yield from _operator_names(reader)
    yield from _names_of_imports(reader)
    yield from _names_of_rules(reader)


def _imports(reader: Reader) -> list[_Import]:
    """Return a file's imports, without those that only choose the version of Rego."""
    imports = []
    for node in reader.imports:
        path = name_of(node["refr"]).path
        if path and path[0] in _ROOTS:
            alias = node.get("as")
            name = reader.text_of(alias) if alias else path[-1]
            imports.append(_Import(name, path, reader.at(node["span"])))
    return imports


def _imports_of_own_package(reader: Reader) -> Iterator[str]:
    """Find imports of the file's own package: a rule further down is undefined through them."""
    for item in _imports(reader):
        if item.path == reader.package[: len(item.path)]:
            yield (
                f"{item.at}: {'.'.join(item.path)} is this file's own package, or contains it, and "
                "the engine misses rules that are read through such an import; write a rule's bare "
                "name, or its full path, which begins with data"
            )


def _reserved_names(reader: Reader) -> Iterator[str]:
    """Find imports named ``input`` or ``data``: an OPA server does not load such a file."""
    for item in _imports(reader):
        if item.name in _ROOTS and item.path != (item.name,):
            yield (
                f"{item.at}: an import can't have the name {item.name}, which Rego reserves; "
                "give it another name with `as`"
            )


def _operator_names(reader: Reader) -> Iterator[str]:
    """Find rules such as `equal`: an OPA server calls the rule for each `==` of the file."""
    definitions = [(item.name, item.at) for item in _imports(reader)]
    definitions += [(rule.path[len(reader.package)], rule.at) for rule in reader.module.rules]
    for name, at in definitions:
        if name in _OPERATORS:
            yield (
                f"{at}: {name} is the name of an operator on an OPA server, which would call this "
                "definition for the operator; choose another name"
            )


def _names_of_imports(reader: Reader) -> Iterator[str]:
    """Find rules and `some` variables with an import's name: only a server reads them first."""
    imports = {item.name: item for item in _imports(reader)}
    for name, span in _declared(reader):
        if name in imports:
            yield (
                f"{reader.at(span)}: {name} is also the import at {imports[name].at}, and the "
                "engine reads the import instead; rename one of the two"
            )


def _names_of_rules(reader: Reader) -> Iterator[str]:
    """Find variables with a rule's name: the engine reads the rule for a `some` variable."""
    rules = {rule.path[len(reader.package)]: rule.at for rule in reader.module.rules}
    for node in reader.parts("SomeVars", "SomeIn", "Every", "AssignExpr", "Func"):
        for name, span in _variables(reader, node):
            if name in rules:
                yield (
                    f"{reader.at(span)}: {name} is also the rule at {rules[name]}, and an engine "
                    "can read one instead of the other; rename one of the two"
                )


def _variables(reader: Reader, node: Mapping[str, Any]) -> Iterator[tuple[str, Span]]:
    """Yield the variables that a part of a rule declares."""
    match node:
        case {"SomeVars": {"vars": spans}}:
            yield from ((reader.text_of(span), span) for span in spans)
        case {"SomeIn": {"key": key, "value": value}}:
            yield from used_variables([key, value])
        case {"Every": {"key": key, "value": value}}:
            yield from ((reader.text_of(span), span) for span in (key, value) if span)
        case {"AssignExpr": {"op": "ColEq", "lhs": pattern}} | {"Func": {"args": pattern}}:
            yield from used_variables(pattern)


def _declared(reader: Reader) -> Iterator[tuple[str, Span]]:
    """Yield the first names of a file's rules, and the variables that `some` declares."""
    for tree in reader.rules:
        name = name_of(tree.head["refr"])
        yield name.path[0], name.span
    for node in reader.parts("SomeVars"):
        for span in node["SomeVars"]["vars"]:
            yield reader.text_of(span), span
