"""The summary of an entry: the columns beside the entry by which a log is searched.

A summary is no evidence. A reader reads the entry to which a search leads, and the verifier
recomputes every summary from its entry.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agentguard.identity.credential import agent_name

OBSERVED: Final = "observe"
"""The ``decision`` in the summary of a call whose decision was not enforced."""


class Summary(NamedTuple):
    """The subject of an entry; a field is None where the kind of entry has no such field.

    ``at`` is the entry's time (RFC 3339, UTC, so that times sort as text). ``agent`` is an
    instance's URI. ``decision`` is the entry's decision (allow, deny) if enforced, else
    ``OBSERVED``. ``status`` is the status of an outcome.
    """

    kind: str
    at: str
    invocation_id: str | None = None
    agent: str | None = None
    principal: str | None = None
    tool: str | None = None
    decision: str | None = None
    status: str | None = None
    task_id: str | None = None
    trace_id: str | None = None


class Search(NamedTuple):
    """The criteria of a search; None for any value.

    ``agent`` is a name, or an instance's URI. ``since`` is included, ``until`` is not; both are
    RFC 3339 times in UTC with microseconds.
    """

    kind: str | None = None
    invocation_id: str | None = None
    agent: str | None = None
    principal: str | None = None
    tool: str | None = None
    decision: str | None = None
    task_id: str | None = None
    trace_id: str | None = None
    since: str | None = None
    until: str | None = None

    def matches(self, summary: Summary) -> bool:
        """Return whether a summary meets all criteria."""
        for name in (
            "kind",
            "invocation_id",
            "principal",
            "tool",
            "decision",
            "task_id",
            "trace_id",
        ):
            criterion = getattr(self, name)
            if criterion is not None and getattr(summary, name) != criterion:
                return False
        if self.agent is not None:
            uri = summary.agent
            if uri is None or self.agent not in (uri, agent_name(uri)):
                return False
        is_late_enough = self.since is None or summary.at >= self.since
        return is_late_enough and (self.until is None or summary.at < self.until)


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id (hex) of a W3C ``traceparent``, None without one."""
    parts = traceparent.split("-") if traceparent is not None else []
    return parts[1] if len(parts) > 1 else None
