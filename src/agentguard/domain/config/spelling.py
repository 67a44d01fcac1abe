"""Names of tools in a configuration that look misspelt.

Which tools there are is known only once they are guarded, so a table for one that never comes is no
mistake by itself: it is worth a warning where another tool's name is close to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

_LOGGER = logging.getLogger("agentguard")

CLOSE: Final = 0.8
"""The ratio, as ``difflib`` has it, from which two names may be meant to be one."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` may have been meant to be, itself aside."""
    others = [other for other in known if other != name]
    return next(iter(get_close_matches(name, others, 1, CLOSE)), None)


class Spelling:
    """Compares the configured names with those of the tools that are guarded, as they come.

    ``configured`` are the names, each with the place where it stands.
    """

    def __init__(self, configured: Mapping[str, str]) -> None:
        self._configured = configured
        self._heard: set[str] = set()
        self._told: set[str] = set()

    def heard(self, tool: str) -> None:
        """Take note of a tool that is guarded."""
        self._heard.add(tool)

    def warn(self) -> None:
        """Log each configured name that no tool has and that is close to one's, once.

        A tool that is configured itself is not the one that was meant.
        """
        heard = frozenset(self._heard)
        for name in self._configured.keys() - heard - self._told:
            tool = closest(name, sorted(heard - self._configured.keys()))
            if tool is not None:
                self._told.add(name)
                _LOGGER.warning(
                    "%s matches no tool that is guarded so far, and %s is close to it: "
                    "if that tool is meant, correct the name",
                    self._configured[name],
                    tool,
                )
