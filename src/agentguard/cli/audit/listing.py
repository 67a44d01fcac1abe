"""``agentguard audit list``: prints the calls and other entries, as a table or as JSON.

``filters.py`` selects the entries, ``history.py`` reads them, and ``list_table.py`` makes the
table. The module is not called ``list``, which is a built-in name.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Final, Unpack

import click

from agentguard.cli.audit import filters, lookup
from agentguard.cli.audit.filters import Filter, FilterOptions
from agentguard.cli.audit.history import History, newest
from agentguard.cli.audit.list_table import Table
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import AS_JSON, CONFIG, EVERY, STATE, Option, command
from agentguard.cli.terminal.shown import Shown

_SHOWN: Final = 50


@command(
    *filters.OPTIONS,
    Option(
        "-n, --last N",
        f"The newest N, 0 for all; by default {_SHOWN}, with --json all.",
        type=click.IntRange(min=0),
    ),
    EVERY,
    Option(
        "--isolation",
        "How well each agent was kept apart from the guard, in place of whom it acted for.",
    ),
    CONFIG,
    STATE,
    AS_JSON,
)
def list_entries(
    *,
    last: int | None,
    every: bool,
    isolation: bool,
    config: Path | None,
    state: Path | None,
    json: bool,
    **criteria: Unpack[FilterOptions],
) -> None:
    """They are listed as they stand in the log, unverified; times are UTC. Filters are combined.

    With --json, one object a line: index, kind, at, agent, principal, proved (false where
    the principal of a refused call is only claimed), tool, resource, decision (allow, deny,
    approval), enforced (false for a call that ran while the policy was only observed), reason,
    invocation_id, outcome (ok, error, unknown, in_doubt: it was authorised and nothing is known
    since), client (its name in [clients] of the guard server), isolation (same-process, same-user,
    separate-user, remote), shown (the arguments that [tools.NAME] show names, without redacted
    parts; {"$missing": true} for one that the log does not hold). What a kind does not have is
    null.
    """
    where = location.locate(config, state)
    reader = where.reader()
    selection = lookup.with_whole_trace(reader, filters.chosen(**criteria))
    if json:
        _print_json(History(reader, Shown(where.config)), selection, last or 0)
        return
    acting = location.config_option(where)
    table = Table(selection, every=every, acting=acting, isolated=isolation)
    history = History(reader, Shown(where.config))
    _print_table(history, selection, table, _SHOWN if last is None else last)


def _print_json(history: History, selection: Filter, last: int) -> None:
    coming = history.rows(selection, newest_first=bool(last))
    for row in newest(coming, last) if last else coming:
        screen.json_line(row.as_json())


def _print_table(history: History, selection: Filter, table: Table, last: int) -> None:
    coming = filter(table.has, history.rows(selection, newest_first=bool(last)))
    lines = table.lines(newest(coming, last) if last else coming)
    first = next(lines, None)
    if first is None:
        screen.line(
            f"nothing in the log matches: {selection}" if str(selection) else "no calls yet"
        )
        _hint(selection.search.principal)
    else:
        screen.columns(table.columns, chain([first], lines))
    hidden, where = table.hidden, ""
    if last and next(coming, None) is not None:
        screen.line(f"these are the newest {last}; --last 0 lists them all")
        where = " since the first of these"
    else:
        hidden = table.hidden  # what is older than the first of them was passed over just now
    if hidden:
        entries = screen.count(hidden, "entry", "entries")
        screen.line(f"and {entries} of outcomes, keys, configuration and policy{where}: --all")


def _hint(principal: str | None) -> None:
    """Explain an empty result for an agent's name: the principal of an agent is ``agent:NAME``."""
    if principal is not None and ":" not in principal:
        screen.line(
            f"a principal's name is whole, as in user:{principal} or agent:{principal}; "
            "--agent takes agents"
        )
