"""Imports that the engine reads otherwise than Rego has them: mistakes.

To Rego an import is its file's own. The engine keeps one table of them for each package, and misses
imports in its second file: there a name is another file's import, or undefined. In a package of
several files an import is refused for that, be it alike in all of them. Within a file the engine
misses rules that are read through an import of the own package.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentguard.engines.rego_tree import Names, Reader, name_of, objects

_ROOTS: Final = frozenset({"data", "input"})


class _Import(NamedTuple):
    """One import of a value: the name that it gives, the path that this means, and its place."""

    name: str
    path: Names
    at: str


def mistakes(readers: list[Reader], query: Names) -> Iterator[str]:
    """Yield a sentence for each import that means another thing here than on a server.

    ``query`` is the package that is asked for: the engine evaluates the ones below it as its parts.
    """
    packages: dict[Names, list[Reader]] = defaultdict(list)
    for reader in readers:
        asked = reader.package[: len(query)] == query
        packages[query if asked else reader.package].append(reader)
        yield from _own_package(reader)
        yield from _reserved(reader)
        yield from _hidden(reader)
        yield from _hiding(reader)
    for package, together in packages.items():
        yield from _shared(package, together)


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
    """A variable that `some` declares is the rule with its name here, and not on a server."""
    rules = {rule.path[len(reader.package)]: rule.at for rule in reader.module.rules}
    for node in objects(reader.rules):
        for span in node.get("SomeVars", {}).get("vars", []):
            if (name := reader.text_of(span)) in rules:
                yield (
                    f"{reader.at(span)}: {name} is also the rule at {rules[name]}, which the "
                    "engine takes in its place; give one of the two another name"
                )


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


def _shared(package: Names, readers: list[Reader]) -> Iterator[str]:
    """What one file imports is in another a rule, a variable, or undefined: a denial is none."""
    if len(readers) == 1:
        return
    for reader in readers:
        for one in _imports(reader):
            yield (
                f"{one.at}: {'.'.join(package)} has several files, with packages below it, and the "
                f"engine mixes up their imports; write {'.'.join(one.path)} in the place of "
                f"{one.name}, or {'.'.join(package)} in one file"
            )
