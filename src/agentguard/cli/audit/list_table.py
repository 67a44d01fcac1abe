"""The table of ``audit list`` and ``audit tail``: the choice of its rows, and their cells.

``log_row.py`` has the rows, and ``cli/terminal/screen.py`` prints cells in columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from rich.text import Text

from agentguard.cli.audit import log_row as rows
from agentguard.cli.audit import phrases
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.log_row import DAMAGED, Row
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.shown import note
from agentguard.identity.credential import agent_alias, agent_name

COLUMNS: Final = (
    "index",
    "at",
    "kind",
    "decision",
    "outcome",
    "agent",
    "principal",
    "tool",
    "resource",
)
"""The names of the table's columns."""

_ISOLATED: Final = (*COLUMNS[:6], "isolation", "tool")
"""The columns of a table with the isolation, which fits a terminal of 80 columns."""

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T")
"""The beginning of a time; an edited log may hold any text in its place."""

_BACKGROUND: Final = frozenset({"key", "config", "policy", "roster"})


class Table:
    """Chooses the rows of a table and makes their lines; ``hidden`` counts the other rows.

    A row that only repeats another row is hidden, such as an outcome, which is in the row of its
    call. A filter by kind, or ``every``, shows these rows too. ``acting`` holds the options for
    a command that writes to the log (``location.config_option``). With ``isolated``, the table says
    how well each agent was kept apart from the guard, in place of the principal and the resource.
    """

    def __init__(
        self,
        selection: Filter,
        *,
        every: bool,
        acting: str,
        isolated: bool = False,
    ) -> None:
        self.hidden = 0
        self.columns = _ISOLATED if isolated else COLUMNS
        self._every = every or selection.search.kind not in (None, "call")
        self._remedies = selection.in_doubt
        self._acting = acting
        self._day = ""

    def has(self, row: Row) -> bool:
        """Whether the table shows a row; count the row as hidden otherwise."""
        repeats = row.kind in _BACKGROUND or (row.kind == "outcome" and row.call is not None)
        if repeats and not self._every:
            self.hidden += 1
            return False
        return True

    def lines(self, entries: Iterable[Row]) -> Iterator[screen.Row]:
        """Yield the lines of rows, and a line with the date wherever the date changes."""
        for row in entries:
            day = row.at[:10] if row.at is not None and _TIME.match(row.at) else ""
            if day and day != self._day:
                self._day = day
                yield (), screen.styled("", day)
            yield self._cells(row), self._note(row)

    def _cells(self, row: Row) -> tuple[str | Text, ...]:
        cells = (
            str(row.index),
            (row.at or "")[11:19],
            _kind(row),
            _decision(row),
            _outcome(row),
            agent_alias(row.agent).removeprefix("agent:"),
        )
        if self.columns is _ISOLATED:
            return *cells, row.isolation or "", row.tool or ""
        return *cells, _principal(row), row.tool or "", "" if row.resource is None else row.resource

    def _note(self, row: Row) -> str | Text:
        if self._remedies and row.outcome == "in_doubt":
            return screen.command(f"{rows.remedy(row.invocation_id)}{self._acting}")
        return note(row.shown, row.reason or "")


def _decision(row: Row) -> Text:
    return phrases.decision(row.decision or "", enforced=row.enforced is not False)


def _outcome(row: Row) -> str | Text:
    if row.resolved is None:
        return screen.styled(row.outcome or "", row.outcome or "")
    if row.kind == "resolution":
        return "ran" if row.resolved else "not ran"
    return screen.styled("resolved", "resolved")


def _principal(row: Row) -> str:
    """Name for whom an agent acts; ``itself`` for its own authority."""
    own = row.agent is not None and row.principal == f"agent:{agent_name(row.agent)}"
    unproved = " (unproved)" if row.proved is False else ""
    principal = "" if row.principal is None else row.principal
    return "itself" if own else f"{principal}{unproved}"


def _kind(row: Row) -> str | Text:
    return screen.styled(DAMAGED, row.kind) if row.kind == DAMAGED else row.kind
