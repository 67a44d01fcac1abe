"""Imports, and names, that the engine reads otherwise than Rego has them: mistakes.

It misses rules that are read through an import of the own package, and takes an import or a rule in
the place of what has the same name. Each package has one file (``packages.py``): of a second
one it would mix up the imports, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentguard.policy.rego.syntax_tree import Names, Reader, name_of, objects, used_variables

_ROOTS: Final = frozenset({"data", "input"})
_OPERATORS: Final = frozenset(
    {
        *("and", "assign", "div", "eq", "equal", "gt", "gte", "internal", "lt", "lte"),
        *("minus", "mul", "neq", "or", "plus", "rem"),
    }
)
"""Builtins by whose names OPA calls its operators (``internal.member_2`` is ``in``)."""


class _Import(NamedTuple):
    """One import of a value: the name that it gives, the path that this means, and its place."""

    name: str
    path: Names
    at: str


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each import or name that means another thing here than on a server."""
    yield from _own_package(reader)
    yield from _reserved(reader)
    yield from _operators(reader)
    yield from _hidden(reader)
    yield from _hiding(reader)


def _imports(reader: Reader) -> list[_Import]:
    """Return a file's imports, without those that only choose the language's version."""
    found = []
    for node in reader.imports:
        path = name_of(node["refr"]).path
        if path and path[0] in _ROOTS:
            alias = node.get("as")
            name = reader.text_of(alias) if alias else path[-1]
            found.append(_Import(name, path, reader.at(node["span"])))
    return found


def _own_package(reader: Reader) -> Iterator[str]:
    """By way of such an import a rule further down is undefined: a denial that asks it is none."""
    for one in _imports(reader):
        if one.path == reader.package[: len(one.path)]:
            yield (
                f"{one.at}: {'.'.join(one.path)} is this file's own package, or holds it; the "
                "engine misses rules that are read through such an import: write a rule's bare "
                "name, or its whole path from data on"
            )


def _reserved(reader: Reader) -> Iterator[str]:
    """Here the name still means the input or the data, on a server the file is not loaded."""
    for one in _imports(reader):
        if one.name in _ROOTS and one.path != (one.name,):
            yield (
                f"{one.at}: an import can't have the name {one.name}, which Rego has given away; "
                "give it another name with `as`"
            )


def _operators(reader: Reader) -> Iterator[str]:
    """To an OPA server `==` is then the policy's own `equal`, in all of the file."""
    named = [(one.name, one.at) for one in _imports(reader)]
    named += [(rule.path[len(reader.package)], rule.at) for rule in reader.module.rules]
    for name, at in named:
        if name in _OPERATORS:
            yield (
                f"{at}: {name} is the name of an operator to an OPA server, which takes this for "
                "it; give it another name"
            )


def _hidden(reader: Reader) -> Iterator[str]:
    """A rule or `some` with an import's name hides the import on a server, and not here."""
    imported = {one.name: one for one in _imports(reader)}
    for name, span in _declared(reader):
        if name in imported:
            yield (
                f"{reader.at(span)}: {name} is also the import at {imported[name].at}, which the "
                "engine takes in its place; give one of the two another name"
            )


def _hiding(reader: Reader) -> Iterator[str]:
    """A variable of `some` is the rule with its name here; what others are, is hard to tell."""
    rules = {rule.path[len(reader.package)]: rule.at for rule in reader.module.rules}
    for node in objects(reader.rules):
        for name, span in _variables(reader, node):
            if name in rules:
                yield (
                    f"{reader.at(span)}: {name} is also the rule at {rules[name]}, and one can be "
                    "taken for the other; give one of the two another name"
                )


def _variables(reader: Reader, node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def _declared(reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the first names of a file's rules, and the variables that `some` declares."""
    for node in reader.rules:
        ((_kind, rule),) = node.items()
        heads = [rule] if rule.get("head") is None else rule["head"].values()
        for head in heads:
            name = name_of(head["refr"])
            yield name.path[0], name.span
    for node in objects(reader.rules):
        for span in node.get("SomeVars", {}).get("vars", []):
            yield reader.text_of(span), span
