"""The spans of an agent's run and of a workflow; the spans of guarded calls lie within.

A failure of tracing never fails a call.
"""

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

    ``conversation`` is the id of the framework's thread. ``delegation`` is the run's delegation,
    for an agent without one of its own (``Agent.under``) and a context without one. ``paused`` is
    the ``traceparent`` of the paused run that this run continues. ``parent`` is the context around
    the run (None: the current context). ``started`` is the time when the run began (nanoseconds
    since the epoch; None: now). ``inside`` is a span of another library for the same run: the
    function then adds attributes to that span and begins no span. Work lies within the returned
    span where the span is entered as a context manager, or its context with ``attached``.
    """
    return caller_of(agent).span(
        conversation=conversation,
        delegation=delegation,
        paused=paused,
        parent=parent,
        started=started,
        inside=inside,
    )


def workflow_span(
    name: str,
    agent: Agent,
    *,
    conversation: str | None = None,
    delegation: Delegation | None = None,
    paused: str | None = None,
) -> AgentSpan:
    """Begin the span ``invoke_workflow`` of the work that several agents share.

    ``agent`` is any of them. The span says for whom and for which task they work, as the
    delegation says: ``delegation``, the agent's own (``Agent.under``), or the one in force in this
    context. ``conversation`` and ``paused`` have the meaning that they have for ``agent_span``.
    """
    return caller_of(agent).workflow_span(
        name, conversation=conversation, delegation=delegation, paused=paused
    )
