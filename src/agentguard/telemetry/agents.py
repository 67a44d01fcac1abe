"""The spans of agents' work in a framework, which adapters begin and end.

``invoke_agent`` is one agent's work, ``invoke_workflow`` that of several, such as a crew's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from agentguard.errors import AgentguardError
from agentguard.telemetry import names, tracing
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.run import AgentRun


class AgentSpan:
    """A span of agents' work. A ``with`` block makes the span current, and ends the span.

    Where no SDK is set up the span does nothing. No method raises (see ``fails_open``).
    """

    def __init__(
        self, span: Span | None, identity: Mapping[str, Any], around: Context | None = None
    ) -> None:
        self._span = span
        self._identity = identity
        self._around = around
        self._token: Any = None
        self._context = None if span is None else trace.set_span_in_context(span)
        self._traceparent = None if span is None else tracing.traceparent_of(span)

    @property
    def context(self) -> Context | None:
        """The context of the agent's work: for threads, and for ``telemetry.attached``."""
        return self._context

    @property
    def parent_id(self) -> int:
        """The id of the parent: the span that was current when this span began; 0 for none."""
        return trace.get_current_span(self._around).get_span_context().span_id

    @property
    def traceparent(self) -> str | None:
        """The span as a W3C ``traceparent``, for a run that goes on in another process."""
        return self._traceparent

    @fails_open
    def end(self, error: BaseException | None = None) -> None:
        """End the span. ``error`` is the exception that ended the work; None also for a pause."""
        span, self._span = self._span, None
        if span is None:
            return
        attributes = self._identity
        if error is not None:
            # the ``code`` of a foreign exception may be any text, such as that of a SystemExit
            code = error.code if isinstance(error, AgentguardError) else None
            kind = code or type(error).__qualname__
            attributes = {names.ERROR_TYPE: kind, **attributes}
            span.set_status(StatusCode.ERROR, kind)
        span.set_attributes(attributes)  # code inside may have overwritten them
        span.end()

    def __enter__(self) -> Self:
        self._token = tracing.attach(self._context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tracing.detach(self._token)
        self.end(error)


class Enriched(AgentSpan):
    """A span of another instrumentation: it gets the agent's identity, and its owner ends it."""

    def __init__(self, span: Span, identity: Mapping[str, Any], around: Context | None) -> None:
        super().__init__(span, identity, around)
        span.set_attributes(identity)

    @fails_open
    def end(self, error: BaseException | None = None) -> None:  # noqa: ARG002  the owner reports it
        """Set the identity again, which others may have overwritten, unless the span has ended."""
        if self._span is not None and self._span.is_recording():
            self._span.set_attributes(self._identity)


SILENT_SPAN = AgentSpan(None, {})
"""Stands in for a span that could not be made."""


@fails_open
def begin(agent_name: str, identity: Mapping[str, Any], run: AgentRun) -> AgentSpan:
    """Start the span of an agent's run."""
    tracer = tracing.tracer()
    if tracer is None:
        return SILENT_SPAN
    attributes: dict[str, Any] = {names.OPERATION: names.INVOKE_AGENT}
    if run.conversation is not None:
        attributes[names.CONVERSATION] = tracing.text(run.conversation)
    attributes |= identity
    paused = tracing.parse(run.paused)
    if run.inside is not None:  # its owner has chosen its trace and its parent
        if paused is not None:
            run.inside.add_link(paused, {names.LINK: "paused"})
        return Enriched(run.inside, attributes, run.parent)
    context, links = tracing.resumed(paused, run.parent)
    span = tracer.start_span(
        f"{names.INVOKE_AGENT} {tracing.text(agent_name)}",
        context,
        attributes=attributes,
        links=links,
        start_time=run.started,
    )
    return AgentSpan(span, attributes, run.parent)


@fails_open
def begin_workflow(
    name: str, work: Mapping[str, Any], conversation: str | None, paused: str | None
) -> AgentSpan:
    """Start the span of a workflow; ``work`` says for whom and for which task, where known."""
    tracer = tracing.tracer()
    if tracer is None:
        return SILENT_SPAN
    context, links = tracing.resumed(tracing.parse(paused), None)
    workflow = tracing.text(name)
    attributes: dict[str, Any] = {
        names.OPERATION: names.INVOKE_WORKFLOW,
        names.WORKFLOW_NAME: workflow,
        names.GEN_AI_AGENT_NAME: workflow,
        **work,
    }
    if conversation is not None:
        attributes[names.CONVERSATION] = tracing.text(conversation)
    span = tracer.start_span(
        f"{names.INVOKE_WORKFLOW} {workflow}",
        context,
        attributes=attributes,
        links=links,
    )
    return AgentSpan(span, attributes)
