"""Which entries of the log are wanted: the options that say so, and the times that they take.

The columns that are kept beside the entries select, and what was selected is read and must match
by itself (``history.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from agentguard.audit.summary import Search, Summary
from agentguard.invocation import timestamp

Kind = Literal[
    "call",
    "authorization",
    "outcome",
    "resolution",
    "erasure",
    "identity",
    "config",
    "policy",
    "key",
    "shard",
]

_AGO: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_OF_CALLS: Final = ("principal", "tool", "decision", "task_id", "trace_id")
"""What only a call's own entry says, of all kinds."""


_ANY: Final = Search()


@dataclass(frozen=True, slots=True)
class Filter:
    """The wanted entries: those that ``search`` matches; of them, calls ``in_doubt`` only."""

    search: Search = _ANY
    in_doubt: bool = False

    @property
    def everything(self) -> bool:
        """True when every entry is wanted."""
        return self == Filter()

    def matches(self, about: Summary, outcome: str | None) -> bool:
        """Whether an entry is wanted, by what it says itself and what became of its call."""
        return self.search.matches(about) and (not self.in_doubt or outcome == "in_doubt")

    def __str__(self) -> str:
        """Say in words what is wanted; nothing, if everything is."""
        given = self.search._asdict()
        if self.in_doubt or any(given[name] is not None for name in _OF_CALLS):
            given["kind"] = None  # it follows
        said = [
            f"{name.removesuffix('_id')} {value}"
            for name, value in given.items()
            if value is not None
        ]
        return ", ".join([*said, *(["in doubt"] if self.in_doubt else [])])


def wanted(  # noqa: PLR0913  one for each option
    *,
    agent: Annotated[
        str | None,
        typer.Option("--agent", metavar="NAME|URI", help="An agent, or one instance of it."),
    ] = None,
    principal: Annotated[
        str | None, typer.Option("--principal", metavar="NAME", help="Calls for somebody.")
    ] = None,
    tool: Annotated[
        str | None, typer.Option("--tool", metavar="NAME", help="Calls of a tool.")
    ] = None,
    decision: Annotated[
        Literal["allow", "deny", "approval"] | None,
        typer.Option(
            "--decision",
            metavar="DECISION",
            help="Calls that were decided so: allow, deny or approval.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Before a time.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="ID", help="Calls of a task.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="ID", help="Calls of a trace (32 hex digits).")
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="Entries of a kind: call, outcome, resolution, erasure, identity, config, policy, "
            "key, shard.",
        ),
    ] = None,
    in_doubt: Annotated[
        bool,
        typer.Option(
            "--in-doubt", help="Calls that were authorised, of which nothing is known since."
        ),
    ] = False,
) -> Filter:
    """Make the filter that the options ask for; raises ``typer.BadParameter``."""
    now = datetime.now(UTC)
    search = Search(
        kind="authorization" if kind == "call" else kind,
        agent=agent,
        principal=principal,
        tool=tool,
        decision=decision,
        task_id=task,
        trace_id=trace,
        since=timestamp(moment(since, now)) if since is not None else None,
        until=timestamp(moment(until, now)) if until is not None else None,
    )
    if in_doubt or any(getattr(search, name) is not None for name in _OF_CALLS):
        if search.kind not in (None, "authorization"):
            message = (
                "--principal, --tool, --decision, --task, --trace and --in-doubt ask for calls: "
                f"no {kind} entry has them; leave --kind out"
            )
            raise typer.BadParameter(message)
        search = search._replace(kind="authorization")
    return Filter(search, in_doubt)


def moment(text: str, now: datetime) -> datetime:
    """Read a time: RFC 3339, a date (its beginning), or how long before ``now``.

    Without an offset it is in UTC. Raises ``typer.BadParameter``.
    """
    try:
        if _AGO.fullmatch(text):
            ago = [{_UNITS[unit]: int(count)} for count, unit in _PART.findall(text)]
            return now - sum((timedelta(**part) for part in ago), timedelta())
        read = datetime.fromisoformat(text)
        return read.astimezone(UTC) if read.tzinfo is not None else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        message = (
            f"{text!r} is no time: say 2026-11-25, 2026-11-25T09:30:00Z, or how long ago it was: "
            "30m, 2h, 7d"
        )
        raise typer.BadParameter(message) from error
