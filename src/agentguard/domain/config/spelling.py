"""Warns about names of tools in a configuration that look misspelt.

A guard learns the names of tools only when an application guards the tools. So a table for an
unknown tool is not a mistake by itself. The warning comes if the name of a guarded tool is close to
the name of the table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

_LOGGER = logging.getLogger("agentguard")

CLOSE: Final = 0.8
"""The ratio of ``difflib`` from which one name may be a misspelling of the other."""


def closest_name(name: str, names: Iterable[str]) -> str | None:
    """Return one of the other ``names`` of which ``name`` may be a misspelling, or None."""
    others = [other for other in names if other != name]
    return next(iter(get_close_matches(name, others, 1, CLOSE)), None)


class Spelling:
    """Compares the names in a configuration with the names of the guarded tools.

    ``places`` has the place in the configuration by the name of a tool.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places
        self._tools: set[str] = set()
        self._warned: set[str] = set()

    def add(self, tool: str) -> None:
        """Add the name of a guarded tool."""
        self._tools.add(tool)

    def warn(self) -> None:
        """Warn once about each configured name that no tool has and that is close to a tool's name.

        A tool with a table of its own is never the suggestion.
        """
        tools = frozenset(self._tools)
        for name in self._places.keys() - tools - self._warned:
            tool = closest_name(name, sorted(tools - self._places.keys()))
            if tool is not None:
                self._warned.add(name)
                _LOGGER.warning(
                    "%s matches no guarded tool so far: did you mean %s? If so, correct the name",
                    self._places[name],
                    tool,
                )
