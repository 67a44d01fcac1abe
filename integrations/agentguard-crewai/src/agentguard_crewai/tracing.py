"""The spans of crews and of their agents' work, in which guarded calls have theirs.

CrewAI takes context variables into all its threads and tasks, and OpenTelemetry's context with
them. Its own spans are never current: it begins and ends them elsewhere, with a provider of its
own. All of this fails open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from crewai.flow.flow_context import current_flow_id
from crewai.tools import BaseTool
from opentelemetry import trace
from opentelemetry.trace import Span

from agentguard import ApprovalPending, adapters
from agentguard.adapters import SILENT_SPAN, AgentSpan, fails_open
from agentguard_crewai.identity import Identity
from agentguard_crewai.runs import Paused, Run

Value = TypeVar("Value")


class _SpanScope(NamedTuple):
    """What is in a span here: part of which run and conversation, and whose work on which task."""

    run: Run
    conversation: str | None
    identity: Identity | None
    task: object


_TRACED: Final[ContextVar[_SpanScope | None]] = ContextVar("agentguard_crewai_traced", default=None)


@contextmanager
def crew_span(name: str, run: Run, member: Identity | None) -> Iterator[None]:
    """Do a crew's work in a span ``invoke_workflow``; ``member`` is somebody who is in it."""
    with _span(run, member, None, partial(adapters.workflow_span, name)):
        yield


@contextmanager
def agent_span(identity: Identity, run: Run, task: object) -> Iterator[None]:
    """Do an agent's work in a span ``invoke_agent``.

    A ``task`` that CrewAI tries again, within the try that has failed, is in that one's.
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
    """Do something in a span; the outermost one of a run that has paused before goes on there."""
    outer = _TRACED.get()
    outermost = outer is None or outer.run is not run
    if outer is not None and not outermost:
        conversation, paused = outer.conversation, None
    else:  # within an agent's work it is its executor that is the flow
        conversation, paused = run.name or current_flow_id.get(), _read_paused_span(identity, run)
    span = begin(conversation=conversation, paused=paused) or SILENT_SPAN
    token = _TRACED.set(_SpanScope(run, conversation, identity, task))
    try:
        with adapters.attached(span.context):
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
    finally:
        _reset(_TRACED, token)


@fails_open
def _reset(variable: ContextVar[Value], token: Token[Value]) -> None:
    """Let a variable be what it was; a coroutine that is closed elsewhere has no say there."""
    variable.reset(token)


@fails_open
def _begin_agent_span(
    identity: Identity, conversation: str | None, paused: str | None
) -> AgentSpan:
    return adapters.agent_span(identity.agent, conversation=conversation, paused=paused)


@fails_open
def _store_paused_span(identity: Identity | None, run: Run, span: AgentSpan) -> None:
    """Keep the span in which a run has paused, for when it goes on, perhaps in another process."""
    if identity is not None and run.name is not None and span.traceparent is not None:
        adapters.run_store(identity.agent).write(_record_name(run.name), span.traceparent.encode())


@fails_open
def _read_paused_span(identity: Identity | None, run: Run) -> str | None:
    """Return in which span a run has paused."""
    if identity is None or run.name is None:
        return None
    traceparent = adapters.run_store(identity.agent).read(_record_name(run.name))
    return None if traceparent is None else traceparent.decode()


def _record_name(run: str) -> str:
    return f"crewai:paused:{sha256(run.encode()).hexdigest()}"


_ENRICHED: Final[ContextVar[Span | None]] = ContextVar("agentguard_crewai_enriched", default=None)
"""The span that stands for the call which is made here: it stands for none within that."""


@contextmanager
def tool_span(tool: BaseTool) -> Iterator[None]:
    """Have a call of this tool, made here, enrich the span that OpenInference has of it, if any.

    OpenLLMetry has none, and neither have calls that a model writes as text.
    """
    span = _instrumentation_span(tool)
    if span is None:
        yield
        return
    token = _ENRICHED.set(span)
    try:
        with adapters.inside_span(span):
            yield
    finally:
        _reset(_ENRICHED, token)


@fails_open
def _instrumentation_span(tool: BaseTool) -> Span | None:
    span = trace.get_current_span()
    attributes = getattr(span, "attributes", None) or {}
    if span is _ENRICHED.get() or attributes.get("tool.name") != tool.name:
        return None
    return span
