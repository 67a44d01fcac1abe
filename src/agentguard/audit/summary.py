"""The summary of an entry: what is kept beside it so that a log can be searched.

It is a convenience and no evidence: who reads an entry that a search has found reads the entry, and
the verifier recomputes every summary from its entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentguard.delegation.grant import Grant
from agentguard.identity.credential import agent_name

OBSERVED: Final = "observe"
"""The ``decision`` of a call that ran whatever the policy said: it was not enforced."""


class Summary(NamedTuple):
    """What an entry is about; None where that kind of entry does not say.

    ``agent`` is an instance's URI, ``decision`` as in the entry (allow, deny) where it was
    enforced, and ``OBSERVED`` where it was not, ``status`` that of
    an outcome, ``at`` the entry's time (RFC 3339, UTC, so that it sorts).
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
    """What to look for; None for everything.

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
        """Whether a summary is one of those that are looked for."""
        for name in (
            "kind",
            "invocation_id",
            "principal",
            "tool",
            "decision",
            "task_id",
            "trace_id",
        ):
            wanted = getattr(self, name)
            if wanted is not None and getattr(summary, name) != wanted:
                return False
        if self.agent is not None:
            uri = summary.agent
            if uri is None or self.agent not in (uri, agent_name(uri)):
                return False
        late_enough = self.since is None or summary.at >= self.since
        return late_enough and (self.until is None or summary.at < self.until)


def of_call(predicate: Mapping[str, Any], *, at: str, decision: str) -> Summary:
    """Summarise an authorization entry from its invocation's predicate."""
    return Summary(
        "authorization",
        at,
        predicate["invocation_id"],
        predicate["agent"],
        predicate["principal"],
        predicate["tool"]["name"],
        decision,
        None,
        predicate["task_id"],
        trace_id(predicate["traceparent"]),
    )


def of_request(
    *,
    at: str,
    agent: str,
    principal: str,
    tool: str,
    task_id: str | None,
    traceparent: str | None,
) -> Summary:
    """Summarise a request entry: a call that waits for a person."""
    return Summary(
        "request",
        at,
        agent=agent,
        principal=principal,
        tool=tool,
        decision="approval",
        task_id=task_id,
        trace_id=trace_id(traceparent),
    )


def of_outcome(invocation_id: str | None, agent: str, *, at: str, status: str) -> Summary:
    """Summarise an outcome entry; the invocation's id stands in its authorization alone."""
    return Summary("outcome", at, invocation_id, agent, status=status)


def of_identity(uri: str, *, at: str) -> Summary:
    """Summarise an identity entry: the instance whose credential it keeps."""
    return Summary("identity", at, agent=uri)


def of_delegation(leaf: Grant, *, at: str) -> Summary:
    """Summarise a delegation entry by its chain's last hop: who acts under it, and for whom."""
    return Summary(
        "delegation", at, agent=leaf.delegatee, principal=leaf.principal, task_id=leaf.task_id
    )


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id (hex) of a W3C ``traceparent``, None where there is none."""
    parts = traceparent.split("-") if traceparent is not None else []
    return parts[1] if len(parts) > 1 else None
