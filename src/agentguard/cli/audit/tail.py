"""``agentguard audit tail``: prints the newest calls, and new ones until an interrupt.

The command reads the log as ``audit list`` does, and takes no lock. It looks for new entries
several times a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Unpack

import click

from agentguard.audit.log import LogReader
from agentguard.cli.audit import filters, lookup
from agentguard.cli.audit.filters import Filter, FilterOptions
from agentguard.cli.audit.history import History, newest
from agentguard.cli.audit.list_table import COLUMNS, Table
from agentguard.cli.audit.log_row import Row
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import AS_JSON, CONFIG, EVERY, STATE, Option, command
from agentguard.cli.terminal.shown import Shown

_PAUSE: Final = 0.1
"""Seconds between two looks; a look reads the log past the newest index."""

_ALIKE: Final = (
    "00000000",
    "00:00:00",
    "resolution",
    "approval",
    "in_doubt",
    "a-name-of-an-agent:0000",
    "user:a-person",
    "a_name_of_a_tool",
    "",
)
"""The cells of a wide row, which decide the widths of the columns."""


@command(
    *filters.OPTIONS,
    Option(
        "-n, --last N",
        "Begin with the newest N.",
        type=click.IntRange(min=0),
        default=10,
        show_default=True,
    ),
    Option(
        "--follow/--no-follow",
        "Whether to wait for new calls.",
        default=True,
        show_default=True,
    ),
    EVERY,
    CONFIG,
    STATE,
    AS_JSON,
)
def tail(
    *,
    last: int,
    follow: bool,
    every: bool,
    config: Path | None,
    state: Path | None,
    json: bool,
    **criteria: Unpack[FilterOptions],
) -> None:
    """Reads the log, unverified, until Ctrl-C. A call is printed when it is authorised, and its
    outcome when the tool has ended. With --json, one object a line, as in audit list.
    """
    where = location.locate(config, state)
    reader = where.reader()
    selection = lookup.with_whole_trace(reader, filters.chosen(**criteria))
    table = Table(selection, every=every or json, acting=location.config_option(where))
    news = _News(History(reader, Shown(where.config)), reader, selection, table)
    with suppress(KeyboardInterrupt):
        show = _as_json if json else _as_table(table)
        show(news.first(last))
        while follow:
            time.sleep(_PAUSE)
            show(news.next())


class _News:
    """Returns the new rows of a log, look by look."""

    def __init__(
        self, history: History, reader: LogReader, selection: Filter, table: Table
    ) -> None:
        self._reader = reader
        self._history = history
        self._selection = selection
        self._table = table
        self._seen = -1
        self._running: set[int] = set()

    def first(self, count: int) -> list[Row]:
        """Return the newest rows of the log, the newest last."""
        self._seen = self._newest()
        rows = self._history.rows(self._selection, newest_first=True)
        # The next look reports the entries that are newer.
        earlier = (row for row in rows if row.index <= self._seen)
        rows_shown = newest(filter(self._table.has, earlier), count)
        self._running = {row.index for row in rows_shown if row.outcome == "in_doubt"}
        return rows_shown

    def next(self) -> list[Row]:
        """Return the rows of the entries since the last look.

        Raises ``StorageError`` (``storage.corrupt``) where another file is in the log's place.
        """
        newest_index = self._newest()
        if newest_index < self._seen:
            self._seen = newest_index
            screen.warn(
                "the log has fewer entries than before, and was rolled back: run agentguard audit "
                "verify"
            )
        news: list[Row] = []
        for row in self._history.rows(after=self._seen):
            self._seen = row.index
            if self._matches(row):
                news.append(row)
        return news

    def _matches(self, row: Row) -> bool:
        if row.call is not None and row.call in self._running:
            self._running.discard(row.call)
            return True  # the outcome of a call that was printed without it
        if row.about is not None and not self._selection.matches(row.about, row.outcome):
            return False
        if not self._table.has(row):
            return False
        if row.outcome == "in_doubt":
            self._running.add(row.index)
        return True

    def _newest(self) -> int:
        index, _body = next(self._reader.entries(newest_first=True), (-1, b""))
        return index


def _as_json(rows: Iterable[Row]) -> None:
    for row in rows:
        screen.json_line(row.as_json())
    sys.stdout.flush()


def _as_table(table: Table) -> Callable[[Iterable[Row]], None]:
    screen_table = screen.Table(COLUMNS, [(_ALIKE, "")])

    def show(rows: Iterable[Row]) -> None:
        screen_table.print(table.lines(rows))
        sys.stdout.flush()

    return show
