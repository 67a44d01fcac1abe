"""Which entries of the log are wanted.

The columns that are kept beside the entries select, and what was selected is read and must match
by itself (``history.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import typer

from agentguard.audit.summary import Search, Summary
from agentguard.cli.options import Decided, Kind
from agentguard.invocation import timestamp

_OF_CALLS: Final = ("principal", "tool", "decision", "task_id", "trace_id")
"""What only a call's own entry says, of all kinds."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The wanted entries: those that ``search`` matches; of them, calls ``in_doubt`` only."""

    search: Search = field(default_factory=Search)
    in_doubt: bool = False

    @property
    def everything(self) -> bool:
        """True when every entry is wanted."""
        return self == EVERYTHING

    def matches(self, about: Summary, outcome: str | None) -> bool:
        """Whether an entry is wanted, by what it says itself and what became of its call."""
        return self.search.matches(about) and (not self.in_doubt or outcome == "in_doubt")

    def __str__(self) -> str:
        """Say in words what is wanted; nothing, if everything is."""
        asked = self.search._asdict()
        if self.in_doubt or _is_of_calls(self.search):
            asked["kind"] = None  # it follows
        said = [
            f"{name.removesuffix('_id')} {value}"
            for name, value in asked.items()
            if value is not None
        ]
        return ", ".join([*said, *(["in doubt"] if self.in_doubt else [])])


EVERYTHING: Final = Filter()


def wanted(  # noqa: PLR0913  one for each option
    *,
    agent: str | None,
    principal: str | None,
    tool: str | None,
    decision: Decided | None,
    since: datetime | None,
    until: datetime | None,
    task: str | None,
    trace: str | None,
    kind: Kind | None,
    in_doubt: bool,
) -> Filter:
    """Make the filter that the options ask for; raises ``typer.BadParameter``."""
    search = Search(
        kind="authorization" if kind == "call" else kind,
        agent=agent,
        principal=principal,
        tool=tool,
        decision=decision,
        task_id=task,
        trace_id=trace,
        since=timestamp(since) if since is not None else None,
        until=timestamp(until) if until is not None else None,
    )
    if in_doubt or _is_of_calls(search):
        if search.kind not in (None, "authorization"):
            message = (
                "--principal, --tool, --decision, --task, --trace and --in-doubt ask for calls: "
                f"no {kind} entry has them; leave --kind out"
            )
            raise typer.BadParameter(message)
        search = search._replace(kind="authorization")
    return Filter(search, in_doubt)


def _is_of_calls(search: Search) -> bool:
    return any(getattr(search, name) is not None for name in _OF_CALLS)
