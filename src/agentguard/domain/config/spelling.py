"""Warns of names of tools in a configuration that look misspelt.

The tools are known only once they are guarded. So a table for a tool that never comes is no mistake
by itself. A warning is due where the name of another tool is close to the table's name.
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
    """Return the one of the other ``names`` of which ``name`` may be a misspelling, if any."""
    others = [other for other in names if other != name]
    return next(iter(get_close_matches(name, others, 1, CLOSE)), None)


class Spelling:
    """Compares the names in a configuration with the names of the tools that are guarded.

    ``configured`` has each name in the configuration, with its place there.
    """

    def __init__(self, configured: Mapping[str, str]) -> None:
        self._configured = configured
        self._tools: set[str] = set()
        self._warned: set[str] = set()

    def add(self, tool: str) -> None:
        """Note the name of a tool that is guarded."""
        self._tools.add(tool)

    def warn(self) -> None:
        """Warn, once each, of a configured name that no tool has and that is close to a tool's.

        A tool with a table of its own is not the one that was meant.
        """
        tools = frozenset(self._tools)
        for name in self._configured.keys() - tools - self._warned:
            tool = closest_name(name, sorted(tools - self._configured.keys()))
            if tool is not None:
                self._warned.add(name)
                _LOGGER.warning(
                    "%s matches no tool that is guarded so far, and %s is close to it: "
                    "if that tool is meant, correct the name",
                    self._configured[name],
                    tool,
                )
