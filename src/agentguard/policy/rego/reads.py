"""Which members of the input a policy reads, and mistakes: members that no input has.

A rule that reads ``input.delegation.user`` never fires, because there is no such member. This
module follows a value back to the input through imports, variables, rules, the parameters of
functions and ``object.get``. A name in a variable (``input.delegation[name]``) is not followed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from agentguard.call import vocabulary
from agentguard.policy.rego.ordering import DefinitionReader, Origin
from agentguard.policy.rego.syntax_tree import Names, Reader, RuleTree, name_of


class _Definition(NamedTuple):
    """One definition: the values that it may have, what it reads, and the functions it calls."""

    path: Names
    values: list[Origin]
    names: list[tuple[Origin, str]]
    calls: list[tuple[str, Names, list[Origin | None]]]


def mistakes(reads: Mapping[Names, str]) -> Iterator[str]:
    """Yield a sentence for each path below the input that no input has."""
    for path, at in reads.items():
        problem = vocabulary.slip(path)
        if problem is not None:
            yield f"{at}: {problem}"


def reads(readers: list[Reader], reached: set[Names], query: Names) -> dict[Names, str]:
    """Return the paths below ``input`` that the policy reads, each with its first place.

    Rules that no output reads count only in the queried package: a folder may hold the package of
    another query, with another input. The policy must be free of recursion.
    """
    definitions = [
        (_definition(reader, tree), reader.package) for reader in readers for tree in reader.rules
    ]
    policy = _Policy([definition for definition, _package in definitions])
    found: dict[Names, str] = {}
    for definition, package in definitions:
        if definition.path in reached or package == query:
            for path, at in policy.reads(definition):
                found.setdefault(path, at)
    return found


def _definition(reader: Reader, tree: RuleTree) -> _Definition:
    resolver = DefinitionReader(reader, tree)
    body = resolver.body()
    names = []
    for node in [*tree.parts("Var", "RefDot", "RefBrack", "Call")][::-1]:  # from the first line
        origin = resolver.origin(node)
        if origin is not None:
            names.append((origin, reader.at(_span(node))))
    return _Definition(body.path, body.values, names, body.calls)


def _span(node: Mapping[str, Any]) -> Any:
    return name_of(node["Call"]["fcn"] if "Call" in node else node).span


class _Policy:
    """Follows what the definitions of a policy read, across rules and functions."""

    def __init__(self, definitions: list[_Definition]) -> None:
        self._by_path: dict[Names, list[_Definition]] = defaultdict(list)
        for definition in definitions:
            self._by_path[definition.path].append(definition)
        self._sources: dict[Origin, list[Origin]] = {}
        self._parameters: dict[Names, list[Origin]] = {}

    def reads(self, definition: _Definition) -> Iterator[tuple[Names, str]]:
        """Yield the paths below ``input`` that a definition reads, and where."""
        for source, at in self._read(definition):
            if source.path[0] == "input":
                yield source.path[1:], at

    def _read(self, definition: _Definition) -> Iterator[tuple[Origin, str]]:
        """Yield what a definition reads of the input, and of its own parameters."""
        for origin, at in definition.names:
            yield from ((source, at) for source in self._sources_of(origin))
        for at, function, arguments in definition.calls:
            for read in self._read_of_parameters(function):
                place = int(read.path[1])
                argument = arguments[place] if place < len(arguments) else None
                if argument is not None:
                    below = argument.below(read.path[2:], whole=read.whole)
                    yield from ((source, at) for source in self._sources_of(below))

    def _sources_of(self, origin: Origin) -> list[Origin]:
        """Return the parts of the input, and the parameters, that a value may come from."""
        if origin.path[0] != "data":
            return [origin]
        if origin not in self._sources:  # without the cache, shared rules are followed many times
            self._sources[origin] = list(dict.fromkeys(self._sources_of_rule(origin)))
        return self._sources[origin]

    def _sources_of_rule(self, origin: Origin) -> Iterator[Origin]:
        for length in range(len(origin.path), 0, -1):
            definitions = self._by_path.get(origin.path[:length], ())
            for definition in definitions:
                for value in definition.values:
                    below = value.below(origin.path[length:], whole=origin.whole)
                    yield from (one for one in self._sources_of(below) if one.path[0] == "input")
            if definitions:
                return

    def _read_of_parameters(self, function: Names) -> list[Origin]:
        """Return what a function reads of its parameters (``("", "0", "user")``)."""
        if function not in self._parameters:
            self._parameters[function] = []  # the function calls itself: refused elsewhere
            definitions = self._by_path.get(function, ())
            found = (source for one in definitions for source, _at in self._read(one))
            self._parameters[function] = list(
                dict.fromkeys(one for one in found if one.path[0] != "input")
            )
        return self._parameters[function]
