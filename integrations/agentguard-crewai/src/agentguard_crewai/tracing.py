"""The spans of crews and of their agents' work; the spans of guarded calls lie within.

CrewAI copies context variables, and so OpenTelemetry's context, into its threads and tasks.
CrewAI's own spans are never current, and have a provider of their own. A failure of tracing never
fails a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

from crewai.flow.flow_context import current_flow_id
from crewai.tools import BaseTool
from opentelemetry import trace
from opentelemetry.trace import Span

from agentguard import ApprovalPending, adapters
from agentguard.adapters import SILENT_SPAN, AgentSpan, fails_open
from agentguard_crewai.identity import Identity
from agentguard_crewai.runs import Paused, Run


class _SpanScope(NamedTuple):
    """The run, conversation, agent and task of the current span."""

    run: Run
    conversation: str | None
    identity: Identity | None
    task: object


_TRACED: Final[ContextVar[_SpanScope | None]] = ContextVar("agentguard_crewai_traced", default=None)


@contextmanager
def crew_span(name: str, run: Run, member: Identity | None) -> Iterator[None]:
    """Run the block in a span ``invoke_workflow``; ``member`` is any agent of the crew."""
    with _span(run, member, None, partial(_begin_crew_span, name, member)):
        yield


@contextmanager
def agent_span(identity: Identity, run: Run, task: object) -> Iterator[None]:
    """Run the block in a span ``invoke_agent``.

    CrewAI's retry of a ``task`` runs within the failed try, and in the same span.
    """
    outer = _TRACED.get()
    is_retry = outer is not None and task is not None and outer.task is task
    if outer is not None and is_retry and outer.identity is identity:
        yield
        return
    with _span(run, identity, task, partial(_begin_agent_span, identity)):
        yield


@contextmanager
def _span(
    run: Run, identity: Identity | None, task: object, begin: Callable[..., AgentSpan | None]
) -> Iterator[None]:
    """Run the block in a span; the outermost span of a resumed run continues the paused trace."""
    outer = _TRACED.get()
    outermost = outer is None or outer.run is not run
    if outer is not None and not outermost:
        conversation, paused = outer.conversation, None
    else:  # within an agent's work the flow is the agent's executor
        conversation, paused = run.name or current_flow_id.get(), _read_paused_span(identity, run)
    span = begin(conversation=conversation, paused=paused) or SILENT_SPAN
    scope = _SpanScope(run, conversation, identity, task)
    try:
        with adapters.assigned(_TRACED, scope), adapters.attached(span.context):
            yield
    except (Paused, ApprovalPending):
        if outermost:
            _store_paused_span(identity, run, span)
        span.end()
        raise
    except BaseException as error:
        span.end(error)
        raise
    else:
        span.end()


@fails_open
def _begin_crew_span(
    name: str, member: Identity | None, conversation: str | None, paused: str | None
) -> AgentSpan | None:
    if member is None:  # the crew has no agent
        return None
    return adapters.workflow_span(name, member.agent, conversation=conversation, paused=paused)


@fails_open
def _begin_agent_span(
    identity: Identity, conversation: str | None, paused: str | None
) -> AgentSpan:
    return adapters.agent_span(identity.agent, conversation=conversation, paused=paused)


@fails_open
def _store_paused_span(identity: Identity | None, run: Run, span: AgentSpan) -> None:
    """Store the span of a paused run, which may resume in another process."""
    if identity is not None and run.name is not None and span.traceparent is not None:
        adapters.run_store(identity.agent).write(_record_name(run.name), span.traceparent.encode())


@fails_open
def _read_paused_span(identity: Identity | None, run: Run) -> str | None:
    """Return the ``traceparent`` of the span in which the run paused; None for no pause."""
    if identity is None or run.name is None:
        return None
    traceparent = adapters.run_store(identity.agent).read(_record_name(run.name))
    return None if traceparent is None else traceparent.decode()


def _record_name(run: str) -> str:
    return f"crewai:paused:{sha256(run.encode()).hexdigest()}"


_ENRICHED: Final[ContextVar[Span | None]] = ContextVar("agentguard_crewai_enriched", default=None)
"""The host span of the current call; nested calls do not enrich the same span again."""


@contextmanager
def tool_span(tool: BaseTool) -> Iterator[None]:
    """Run a call of this tool in the span that OpenInference made for the call, if any.

    The call then enriches that span. OpenLLMetry makes no such span, and calls that a model writes
    as text have none.
    """
    span = _instrumentation_span(tool)
    if span is None:
        yield
        return
    with adapters.assigned(_ENRICHED, span), adapters.inside_span(span):
        yield


@fails_open
def _instrumentation_span(tool: BaseTool) -> Span | None:
    span = trace.get_current_span()
    attributes = getattr(span, "attributes", None) or {}
    if span is _ENRICHED.get() or attributes.get("tool.name") != tool.name:
        return None
    return span
