"""The filter of log entries, and the command-line options that make a filter.

The columns beside the entries select candidates. ``history.py`` reads each candidate, and drops an
entry that does not match by its own content.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import typer

from agentguard.audit.summary import Search, Summary
from agentguard.call.invocation import timestamp
from agentguard.cli.terminal.options import (
    AgentOption,
    DecisionOption,
    InDoubtOption,
    KindOption,
    PrincipalOption,
    SinceOption,
    TaskOption,
    ToolOption,
    TraceOption,
    UntilOption,
    options_from,
)
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


def _selection(  # noqa: PLR0913  one for each option
    *,
    agent: AgentOption = None,
    principal: PrincipalOption = None,
    tool: ToolOption = None,
    decision: DecisionOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    task: TaskOption = None,
    trace: TraceOption = None,
    kind: KindOption = None,
    in_doubt: InDoubtOption = False,
) -> Filter:
    """Make a filter from the options; raises ``typer.BadParameter``."""
    known = None if agent is None else parse_alias(agent)
    name, alias = (agent, None) if known is None else known
    search = Search(
        kind=kind,
        agent=name,
        principal=principal,
        tool=tool,
        decision=decision,
        task_id=task,
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
            raise typer.BadParameter(message)
        search = search._replace(kind="call")
    return Filter(search, in_doubt, alias)


def _is_of_calls(search: Search) -> bool:
    return any(getattr(search, name) is not None for name in _OF_CALLS)


def calls(selection: Filter) -> Filter:
    """Narrow a filter to calls; raises ``typer.BadParameter`` for a filter of another kind."""
    if selection.search.kind not in (None, "call"):
        raise typer.BadParameter("this command reads only calls: leave out --kind")
    return replace(selection, search=selection.search._replace(kind="call"))


with_options: Final = options_from("selection", _selection)
"""A decorator that gives a command the options of a filter for its parameter ``selection``."""
