"""``agentguard audit list``: the calls, and the other entries, as a table or as JSON.

Which entries are wanted stands in ``filters.py``, how they are found in ``history.py``. The table's
rows are made here, for ``audit tail`` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Annotated, Final

import typer
from rich.text import Text

from agentguard.cli import filters, options, rows, screen
from agentguard.cli.filters import Filter
from agentguard.cli.history import History
from agentguard.cli.place import JsonOption, Place
from agentguard.cli.portrait import alias
from agentguard.cli.rows import DAMAGED, Row

COLUMNS: Final = ("index", "at", "kind", "decision", "outcome", "agent", "tool")
"""The names of the table's columns."""

_SHOWN: Final = 50

LastOption = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--last",
        min=0,
        metavar="N",
        help=f"The newest N, 0 for all; by default {_SHOWN}, with --json all.",
    ),
]
EveryOption = Annotated[
    bool,
    typer.Option("--all", help="Also the entries that are no call's; --json always has them."),
]

_BACKGROUND: Final = frozenset({"shard", "key", "config", "policy"})


@options.given(wanted=filters.wanted, found=options.log)
def list_entries(
    *,
    wanted: Filter,
    last: LastOption = None,
    every: EveryOption = False,
    found: Place,
    json: JsonOption = False,
) -> None:
    """List the calls, the newest last.

    They are listed as they stand in the log, unverified; times are UTC. Filters are combined.

    With --json, one object a line: index, shard, kind, at, agent, principal, tool, decision
    (allow, deny, approval), reason, invocation_id, outcome (ok, error, unknown, in_doubt: it was
    authorised and nothing is known since). What a kind does not have is null.
    """
    reader = found.reader()
    history = History(reader)
    if json:
        coming = history.rows(wanted, newest_first=bool(last))
        for row in newest(coming, last) if last else coming:
            screen.json_line(row.as_json())
        return
    count = _SHOWN if last is None else last
    table = Table(wanted, several=len(reader.shards()) > 1, every=every)
    coming = filter(table.has, history.rows(wanted, newest_first=bool(count)))
    lines = table.lines(newest(coming, count) if count else coming)
    first = next(lines, None)
    if first is None:
        screen.line(f"nothing in the log matches: {wanted}" if str(wanted) else "no calls yet")
    else:
        screen.columns(COLUMNS, chain([first], lines))
    if count and next(coming, None) is not None:
        screen.line(f"these are the newest {count}; --last 0 lists them all")
    if table.hidden:
        entries = screen.count(table.hidden, "entry", "entries")
        screen.line(f"and {entries} of outcomes, keys, configuration and policy: --all")


def newest(coming: Iterator[Row], count: int) -> list[Row]:
    """Take the first of rows that come newest first, and return them newest last."""
    return list(islice(coming, count))[::-1]


class Table:
    """Makes the lines of a table from the rows that it has, and counts those that it leaves out.

    It has no row that says nothing that another does not: an outcome stands in its call's row. Who
    asks for a kind or for ``every`` entry gets those too. ``several``: the log has several shards.
    """

    def __init__(self, wanted: Filter, *, several: bool, every: bool) -> None:
        self.hidden = 0
        self._every = every or wanted.search.kind not in (None, "authorization")
        self._several = several
        self._remedies = wanted.in_doubt
        self._day = ""

    def has(self, row: Row) -> bool:
        """Whether a row is one of the table's."""
        repeats = row.kind in _BACKGROUND or (row.kind == "outcome" and row.call is not None)
        if repeats and not self._every:
            self.hidden += 1
            return False
        return True

    def lines(self, wanted: Iterable[Row]) -> Iterator[screen.Row]:
        """Yield the rows, and a line with the date wherever it changes."""
        for row in wanted:
            at = row.at or ""
            if at and at[:10] != self._day:
                self._day = at[:10]
                yield (), screen.styled("", self._day)
            yield self._cells(row), self._note(row)

    def _cells(self, row: Row) -> tuple[str | Text, ...]:
        outcome = _outcome(row)
        return (
            f"{row.shard}/{row.index}" if self._several or row.shard else str(row.index),
            (row.at or "")[11:19],
            _kind(row),
            screen.styled(row.decision or "", row.decision or ""),
            outcome,
            alias(row.agent or "").removeprefix("agent:"),
            row.tool or "",
        )

    def _note(self, row: Row) -> str:
        if self._remedies and row.outcome == "in_doubt":
            return rows.remedy(row.invocation_id)
        return row.reason or ""


def _outcome(row: Row) -> str | Text:
    if row.resolved is None:
        return screen.styled(row.outcome or "", row.outcome or "")
    if row.kind == "resolution":
        return "ran" if row.resolved else "not ran"
    return screen.styled("resolved", "resolved")


def _kind(row: Row) -> str | Text:
    if row.kind == DAMAGED:
        return screen.styled(DAMAGED, row.kind)
    return "call" if row.kind == "authorization" else row.kind
