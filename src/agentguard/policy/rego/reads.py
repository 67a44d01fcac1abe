"""Which members of the input a policy reads, and mistakes: members that no input has.

A rule that reads ``input.delegation.user`` never fires, because there is no such member.
``origins.py`` follows what is read back to the input. A value that may also be another object is
not judged, and neither is a name in a variable (``input.delegation[name]``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from agentguard.call import vocabulary
from agentguard.policy.rego.origins import ELEMENT, PARAMETER, Definition, Origin, Policy, keys
from agentguard.policy.rego.syntax_tree import Names, Reader, name_of


class Read(NamedTuple):
    """One place where a policy reads a value, and all that the value may be."""

    at: str
    sources: tuple[Origin, ...]


def mistakes(reads: list[Read]) -> Iterator[str]:
    """Yield a sentence for each path below the input that no input has."""
    for read in reads:
        problems = [one and vocabulary.slip(_below_input(one)) for one in read.sources]
        if all(problems):
            yield from (f"{read.at}: {problem}" for problem in problems)


def paths(reads: list[Read]) -> dict[Names, str]:
    """Return the paths below ``input`` that the policy reads, each with its first place."""
    found: dict[Names, str] = {}
    for read in reads:
        match read.sources:
            case (("input", *_) as source,):  # what may be several values is read where they stand
                found.setdefault(_below_input(source), read.at)
    return found


def _below_input(source: Names) -> Names:
    return tuple(name for name in source[1:] if name != ELEMENT)


def reads(readers: list[Reader], reached: set[Names], query: Names) -> list[Read]:
    """Return what the policy reads of the input.

    Rules that no output reads count only in the queried package: a folder may hold the package of
    another query, with another input. The policy must be free of recursion.
    """
    policy = _Policy(readers)
    found = {
        (at, sources): None
        for definition in policy.definitions
        if definition.path in reached or definition.reader.package == query
        for at, sources in policy.reads(definition)
    }
    return [Read(at, sources) for at, sources in found if sources]


class _Policy(Policy):
    """Follows the parameters of functions to the arguments of all calls."""

    def __init__(self, readers: list[Reader]) -> None:
        super().__init__(readers, gathered=True)
        self._inputs: dict[tuple[Names, Names], tuple[Origin, ...]] = {}
        self._calls: dict[Names, list[tuple[Definition, list[Any]]]] = defaultdict(list)
        for at in self.definitions:
            for node in at.tree.parts("Call"):
                called = at.reader.reference(name_of(node["Call"]["fcn"]), call=True).definition
                self._calls[called].append((at, node["Call"]["params"]))

    def reads(self, at: Definition) -> Iterator[tuple[str, tuple[Origin, ...]]]:
        """Yield what a definition reads, and where."""
        for node in [*at.tree.parts("Var", "RefDot", "RefBrack", "Call")][::-1]:  # from the top
            match node:
                case {"Call": {"fcn": function, "params": [of, key, _]}}:
                    if name_of(function).path != ("object", "get") or not keys(key):
                        continue
                    span, origins = name_of(function).span, self.origins(at, of, keys(key))
                case {"Call": _}:
                    continue
                case _:
                    span, origins = name_of(node).span, self.origins(at, node)
            yield at.reader.at(span), self._sources(at, origins)

    def _sources(self, at: Definition, origins: tuple[Origin, ...]) -> tuple[Origin, ...]:
        found: dict[Origin, None] = {}
        for origin in origins:
            if origin is None or origin[0] != PARAMETER:
                found[origin] = None
            else:
                found.update(dict.fromkeys(self._argued(at, origin)))
        return tuple(found)

    def _argued(self, at: Definition, origin: Names) -> tuple[Origin, ...]:
        """Return what an origin below a parameter is, by the arguments of all calls."""
        if (at.path, origin) not in self._inputs:
            self._inputs[at.path, origin] = ()
            self._inputs[at.path, origin] = tuple(
                source
                for caller, arguments in self._calls[at.path]
                for source in self._sources(caller, self.argument(caller, arguments, origin))
            )
        return self._inputs[at.path, origin]
