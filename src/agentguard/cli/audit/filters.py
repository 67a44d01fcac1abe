"""The filter of log entries, and the command-line options that make a filter.

The columns beside the entries select candidates. ``history.py`` reads each candidate, and drops an
entry that does not match by its own content.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, TypedDict, Unpack

import click

from agentguard.audit.kinds import KINDS
from agentguard.audit.summary import Search, Summary
from agentguard.call.invocation import timestamp
from agentguard.cli.terminal import times
from agentguard.cli.terminal.options import Option, beginning_of_trace_id
from agentguard.identity.credential import agent_alias, parse_alias

_OF_CALLS: Final = ("principal", "tool", "decision", "task_id", "trace_id")
"""The criteria that only the entries of calls can match."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Matches the entries of ``search``; with ``in_doubt``, only calls in doubt.

    With an ``alias``, a short name, the filter matches only entries of instances with that name.
    """

    search: Search = field(default_factory=Search)
    in_doubt: bool = False
    alias: str | None = None

    @property
    def everything(self) -> bool:
        """Whether the filter matches every entry."""
        return self == EVERYTHING

    def matches(self, about: Summary, outcome: str | None) -> bool:
        """Whether an entry matches by its own content and the outcome of its call."""
        if self.alias is not None and agent_alias(about.agent) != self.alias:
            return False
        return self.search.matches(about) and (not self.in_doubt or outcome == "in_doubt")

    def __str__(self) -> str:
        """Describe the filter; an empty text for the filter that matches every entry."""
        criteria = self.search._asdict()
        criteria["agent"] = self.alias or self.search.agent
        if (self.in_doubt or _is_of_calls(self.search)) and self.search.kind == "call":
            criteria["kind"] = None  # the other criteria imply the kind
        texts = [
            f"{name.removesuffix('_id')} {value}"
            for name, value in criteria.items()
            if value is not None
        ]
        return ", ".join([*texts, *(["in doubt"] if self.in_doubt else [])])


EVERYTHING: Final = Filter()


OPTIONS: Final = (
    Option(
        "--agent NAME|URI",
        "An agent, or one instance by its URI or its short name, as in assistant:Zq3x.",
    ),
    Option("--principal NAME", "Calls for a principal, as in user:alice."),
    Option("--tool NAME", "Calls of a tool."),
    Option(
        "--decision DECISION",
        "Calls with a decision: allow, deny or approval; observe for calls that ran while the "
        "policy was only observed.",
        type=click.Choice(["allow", "deny", "approval", "observe"]),
    ),
    Option(
        "--since TIME",
        "From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
        type=times.parse,
    ),
    Option("--until TIME", "Before a time.", type=times.parse),
    Option("--task ID", "Calls of a task."),
    Option(
        "--trace ID",
        "Calls of a trace, by its id or the beginning of its id.",
        type=beginning_of_trace_id,
    ),
    Option(
        "--kind KIND",
        f"Entries of a kind: {', '.join(sorted(KINDS))}.",
        type=click.Choice(sorted(KINDS)),
    ),
    Option("--in-doubt", "Calls that are authorised in the log and have no outcome."),
)


class FilterOptions(TypedDict):
    """The values of ``OPTIONS``."""

    agent: str | None
    principal: str | None
    tool: str | None
    decision: str | None
    since: datetime | None
    until: datetime | None
    task: str | None
    trace: str | None
    kind: str | None
    in_doubt: bool


def chosen(**options: Unpack[FilterOptions]) -> Filter:
    """Make a filter from the options; raises ``click.BadParameter``."""
    agent, decision, trace = options["agent"], options["decision"], options["trace"]
    kind, since, until = options["kind"], options["since"], options["until"]
    in_doubt = options["in_doubt"]
    known = None if agent is None else parse_alias(agent)
    name, alias = (agent, None) if known is None else known
    search = Search(
        kind=kind,
        agent=name,
        principal=options["principal"],
        tool=options["tool"],
        decision=decision,
        task_id=options["task"],
        trace_id=trace,
        since=timestamp(since) if since is not None else None,
        until=timestamp(until) if until is not None else None,
    )
    if decision == "approval" and search.kind is None:
        search = search._replace(kind="request")
    # A request and an evaluation have these members as well. A trace has calls and requests.
    is_trace = trace is not None and kind is None
    selects_others = not in_doubt and (search.kind in ("request", "evaluation") or is_trace)
    if (in_doubt or _is_of_calls(search)) and not selects_others:
        if search.kind not in (None, "call"):
            message = (
                "--principal, --tool, --decision, --task, --trace and --in-doubt select calls, and "
                f"an entry of the kind {kind} is not a call: leave out --kind"
            )
            raise click.BadParameter(message)
        search = search._replace(kind="call")
    return Filter(search, in_doubt, alias)


def _is_of_calls(search: Search) -> bool:
    return any(getattr(search, name) is not None for name in _OF_CALLS)


def calls(selection: Filter) -> Filter:
    """Narrow a filter to calls; raises ``click.BadParameter`` for a filter of another kind."""
    if selection.search.kind not in (None, "call"):
        raise click.BadParameter("this command reads only calls: leave out --kind")
    return replace(selection, search=selection.search._replace(kind="call"))
