"""``agentguard audit show``: the story of one call, or of all calls of a trace.

What belongs to a story stands in ``story.py``, how it is written out in ``portrait.py``.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer

from agentguard.cli import finding, options, portrait, screen, story
from agentguard.cli.finding import Found
from agentguard.cli.options import TrustedLog
from agentguard.cli.place import JsonOption
from agentguard.cli.verdict import untrusted


class _Asked(NamedTuple):
    """The name of a call, or the id of a trace."""

    call: str | None
    trace: str | None


def _asked(
    call: Annotated[
        str | None,
        typer.Argument(
            metavar="INVOCATION_ID|INDEX",
            help="An invocation id, 8 or more characters of its beginning, an index, or "
            "SHARD/INDEX.",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="ID", help="All calls of a trace (32 hex digits)."),
    ] = None,
) -> _Asked:
    if (call is None) is (trace is None):
        raise typer.BadParameter("name a call, or a trace with --trace")
    return _Asked(call, trace)


@options.given(asked=_asked, log=options.trusted_log)
def show(*, asked: _Asked, log: TrustedLog, json: JsonOption = False) -> None:
    """Tell the story of one call.

    Who called what, for whom, what was decided and why, what became of it, and how to prove it. Its
    signatures, its credential and its arguments are checked; exit code 1 if one does not hold.
    """
    reader = log.place.reader()
    if asked.call is not None:
        found = finding.find(reader, asked.call)
        if found.entry.kind != "authorization":
            _show_entry(found, json=json)
            return
        calls = iter([found])
    else:
        calls = finding.of_trace(reader, asked.trace or "")
    failed = False
    for number, one in enumerate(calls):
        told = story.tell(reader, one, log.trust.document)
        failed = failed or bool(told.problems)
        if json:
            screen.json_line(told.as_json())
            continue
        if number:
            screen.line()
        portrait.draw(told, log.trust)
    if json and not log.trust.outside:
        screen.warn(untrusted(log.trust))
    if failed:
        raise typer.Exit(1)


def _show_entry(found: Found, *, json: bool) -> None:
    members = {"kind": found.entry.kind, "at": found.entry.at, **found.entry.members}
    if json:
        screen.json_line(members)
    else:
        portrait.draw_entry(members)
