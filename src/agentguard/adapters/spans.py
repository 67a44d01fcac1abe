"""The spans of agents and of their teams, in which guarded calls have theirs. All fails open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.guard.agent import Agent, caller_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from agentguard.delegation.handle import Delegation
    from agentguard.telemetry import AgentSpan


def agent_span(
    agent: Agent,
    *,
    conversation: str | None = None,
    delegation: Delegation | None = None,
    paused: str | None = None,
    parent: Context | None = None,
    started: int | None = None,
    inside: Span | None = None,
) -> AgentSpan:
    """Begin the span ``invoke_agent`` of a run of ``agent``.

    ``conversation`` is the framework's thread. ``delegation`` is the one of the run, where it is
    neither that of ``under`` nor in force here. ``paused``, a ``traceparent``, names the run that
    this run continues. ``parent`` is the context around the run (None: the current one), and
    ``started`` the time when the run began (nanoseconds since the epoch; None: now). ``inside`` is
    a span of somebody else that stands for the run already: then that span is enriched, and none is
    begun. Work is inside the span where the span is entered, as a context manager or with
    ``attached``.
    """
    return caller_of(agent).span(
        conversation=conversation,
        delegation=delegation,
        paused=paused,
        parent=parent,
        started=started,
        inside=inside,
    )
