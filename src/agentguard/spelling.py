"""Finds the name that was probably meant, and warns about names that look misspelt.

A guard learns the names of tools, and the scopes that tools require, only when an application
guards the tools. So a table for an unknown tool is not a mistake by itself, and neither is an
unknown scope. The warning comes if a known name is close to the unknown one. Where the tools of a
program are known before its first agent, an unmatched table is an error (``Spelling.require``).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Final

from agentguard.errors import ConfigError

_LOGGER = logging.getLogger("agentguard")

CLOSE: Final = 0.8
"""The ratio of ``difflib`` from which one name may be a misspelling of the other."""

_PARTS: Final = re.compile(r"[:./]")
_CLOSE_PARTS: Final = 0.7
"""The ratio for the parts of a scope, which are short."""

_NAMED: Final = 3
"""The most tools without a table that an error names."""

_BARE_KEY: Final = re.compile("[A-Za-z0-9_-]+")
"""A key that TOML takes without quotes."""

_MOST: Final = 1_000
"""So many names are kept to be compared: the clients of a guard server name what they like."""

_LONGEST: Final = 64
"""The most characters of a scope that is compared: the time grows with the square of them."""

_MOST_COMPARISONS: Final = 10_000
"""The most comparisons of scopes: clients of a guard server could ask for them without end."""


def closest_name(name: str, names: Iterable[str]) -> str | None:
    """Return one of the other ``names`` of which ``name`` may be a misspelling, or None."""
    others = [other for other in names if other != name]
    return next(iter(get_close_matches(name, others, 1, CLOSE)), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``did you mean NAME? `` for the closest of ``names``, or the empty text."""
    candidate = closest_name(name, sorted(names))
    return f"did you mean {candidate}? " if candidate is not None else ""


def closest_scope(scope: str, scopes: Iterable[str]) -> str | None:
    """Return one of the other ``scopes`` of which ``scope`` may be a misspelling, or None.

    The parts of a scope are compared one by one: ``files:read`` is not close to ``files:write``.
    """
    parts = _PARTS.split(scope)
    for other in sorted(scopes):
        others = _PARTS.split(other)
        if other != scope and len(others) == len(parts) and all(map(_are_close, parts, others)):
            return other
    return None


def _are_close(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() >= _CLOSE_PARTS


class ScopeSpelling:
    """Warns once about each scope that looks misspelt, where the program names the scope.

    Long scopes are not compared, and neither is any scope after very many comparisons.
    ``configured`` are the scopes of the agents and the roles in ``source``, the configuration.
    """

    def __init__(self, source: str, configured: Iterable[str]) -> None:
        self._source = source
        self._configured = frozenset(configured)
        self._required: set[str] = set()
        self._warned: set[str] = set()
        self._comparisons = 0

    def require(self, tool: str, scopes: Iterable[str]) -> None:
        """Check the scopes that ``tool`` requires, and add them to the known scopes."""
        scopes = frozenset(scopes)
        for scope in sorted(scopes - self._configured):
            what = f"the tool {tool} requires the scope {scope}, which no agent can have"
            self._warn(scope, self._configured, what)
        short = {scope for scope in scopes if len(scope) <= _LONGEST}
        if len(self._required) + len(short) <= _MOST:
            self._required |= short

    def delegate(self, subject: str, scopes: Iterable[str]) -> None:
        """Check the scopes that ``subject`` delegates."""
        known = self._configured | self._required
        for scope in sorted(frozenset(scopes) - known):
            what = f"{subject} delegates the scope {scope}, which no agent, role or tool names"
            self._warn(scope, known, what)

    def _warn(self, scope: str, known: frozenset[str], what: str) -> None:
        if scope in self._warned or len(self._warned) >= _MOST or len(scope) > _LONGEST:
            return
        self._comparisons += len(known)
        if self._comparisons > _MOST_COMPARISONS:
            return
        candidate = closest_scope(scope, known)
        if candidate is not None:
            self._warned.add(scope)
            _LOGGER.warning(
                "%s (%s): did you mean %s? If so, correct the name", what, self._source, candidate
            )


class Spelling:
    """Compares the names in a configuration with the names of the guarded tools.

    ``places`` has the place in the configuration by the name of a tool. ``tables`` are the names
    that have a table ``[tools.NAME]``.
    """

    def __init__(self, places: Mapping[str, str], tables: Collection[str]) -> None:
        self._places = places
        self._tables = frozenset(tables)
        self._tools: set[str] = set()
        self._warned: set[str] = set()

    def add(self, tool: str) -> None:
        """Add the name of a guarded tool."""
        if tool in self._places or len(self._tools) < _MOST:
            self._tools.add(tool)

    def table_for(self, tool: str) -> str | None:
        """Return the name of a table that no tool has and that may be meant for ``tool``."""
        return closest_name(tool, sorted(self._tables - self._tools))

    def require(self) -> None:
        """Refuse a table that no tool has while a tool has no table, and a misspelt name elsewhere.

        Either may have been renamed without the other, and the tool would go without the table's
        ``requires``. Nothing is refused where no tool is known. Raises ``ConfigError``.
        """
        tools = frozenset(self._tools)
        for name, without in self._unmatched(tools):
            meant = closest_name(name, sorted(without))
            if meant is None and name not in self._tables:
                continue
            others = [meant] if meant is not None else sorted(without)[:_NAMED]
            message = (
                f"{self._places[name]} names no tool of this program, and {', '.join(others)} "
                f"{'has' if len(others) == 1 else 'have'} no table: "
                f"{did_you_mean(name, without)}{'C' if meant else 'c'}orrect the name; or, where "
                f"{name} is a tool of another program, give each tool of this one a table, which "
                "may be empty: "
                f"[tools.{key(others[0])}]"
            )
            raise ConfigError(message)

    def warn(self) -> None:
        """Warn once about each configured name that no tool has and that is close to a tool's name.

        A tool with a table of its own is never the suggestion.
        """
        for name, without in self._unmatched(frozenset(self._tools)):
            tool = closest_name(name, sorted(without))
            if tool is not None and name not in self._warned:
                self._warned.add(name)
                _LOGGER.warning(
                    "%s matches no guarded tool so far: did you mean %s? If so, correct the name",
                    self._places[name],
                    tool,
                )

    def _unmatched(self, tools: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield each configured name that no tool has, with the tools that may have lost it."""
        for name in sorted(self._places.keys() - tools):
            without = tools - (self._tables if name in self._tables else self._places.keys())
            if without:
                yield name, without


def key(name: str) -> str:
    """Return a name as a key of TOML, in quotes where it needs them."""
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
