"""The span of a guarded call: ``execute_tool``, or ``agentguard.authorize`` in a host's span.

The flow reports what happens to a call (``flow.listener.CallListener``). Here each report becomes
attributes, events and a status. Arguments and results are among them only where ``[telemetry]``
says so, and the texts of errors never. Nothing here raises (see ``failing.fails_open``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from types import MappingProxyType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from agentguard.approvals.answer import Approval
from agentguard.approvals.request import ApprovalPending, ApprovalRequest
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, LogPlace
from agentguard.call.decision import Decision
from agentguard.call.invocation import Invocation
from agentguard.flow.authority import AgentIdentity, Authority
from agentguard.flow.listener import LoggedInvocation
from agentguard.telemetry import attributes as told
from agentguard.telemetry import metrics, names, tracing
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.identity import NOBODY, identity
from agentguard.telemetry.settings import Settings

_OF_TOOL: Final = frozenset({names.TOOL_ARGUMENTS, names.TOOL_RESULT})


@dataclass(slots=True, eq=False)
class Call:
    """Listens to one call (``flow.listener.CallListener``)."""

    _settings: Settings
    _trust_domain: str
    _actor: AgentIdentity
    _invocation: Invocation
    _started: int = field(default_factory=time.time_ns, init=False)
    _begun: float = field(default_factory=time.perf_counter, init=False)
    _took: float = field(default=0.0, init=False)

    _span: Span | None = field(default=None, init=False)
    _authorize: Span | None = field(default=None, init=False)
    _host: bool = field(default=False, init=False)
    _records: bool = field(default=False, init=False)
    _context: Context | None = field(default=None, init=False)
    _token: Any = field(default=None, init=False)
    _about: dict[str, Any] = field(default_factory=dict, init=False)
    _identity: MappingProxyType[str, Any] = field(default_factory=lambda: NOBODY, init=False)
    _attributes: dict[str, Any] = field(default_factory=dict, init=False)

    _decision: Decision | None = field(default=None, init=False)
    _enforced: bool = field(default=True, init=False)
    _request: ApprovalRequest | None = field(default=None, init=False)
    _answers: Sequence[Approval] = field(default=(), init=False)
    _outcome: str | None = field(default=None, init=False)
    _outcome_error: str | None = field(default=None, init=False)
    _suspended: bool = field(default=False, init=False)
    _handed_on: bool = field(default=False, init=False)

    # --- reports of the flow --------------------------------------------------------------------

    @fails_open
    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """Start the span with the identity of who acts."""
        return self._open(authority, task_id, paused)

    def _open(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        tracer = tracing.tracer()
        if tracer is None:  # only metrics are set up
            return tracing.current()
        tool = tracing.text(self._invocation.tool.name)
        self._about = {
            names.OPERATION: names.EXECUTE_TOOL,
            names.TOOL_NAME: tool,
            names.TOOL_TYPE: "function",
            names.TOOL_CALL_ID: tracing.text(self._invocation.site.call_id),
        }
        principal = authority.principal if authority.is_proved else f"agent:{self._actor.name}"
        who = (principal, tuple(authority.actors), task_id)
        self._identity = identity(self._settings, self._trust_domain, self._actor, *who)
        attributes = self._about | self._identity
        resumes = tracing.parse(paused) if paused is not None else None
        host = tracing.host()
        if host is not None:
            self._span, self._host = host, True
            host.set_attributes(attributes)
            if resumes is not None:
                host.add_link(resumes, {names.LINK: "paused"})
            self._authorize = tracer.start_span(
                names.AUTHORIZE,
                trace.set_span_in_context(host),
                attributes=self._identity,
                start_time=self._started,
            )
        else:
            parent, links = tracing.resumed(resumes, None)
            self._span = tracer.start_span(
                f"{names.EXECUTE_TOOL} {tool}",
                parent,
                attributes=attributes,
                links=links,
                start_time=self._started,
            )
        self._records = self._span.is_recording()
        inside = trace.set_span_in_context if host is None else tracing.entered
        self._context = inside(self._span)
        return tracing.traceparent_of(self._span)

    @fails_open
    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """Add an event: the policy may decide a call more than once."""
        if not self._records:
            return
        attributes: dict[str, Any] = {names.DECISION: decision.outcome}
        if decision.code:
            attributes[names.DECISION_CODE] = decision.code
        if policy_sha256 is not None:
            attributes[names.POLICY] = self._attributes[names.POLICY] = policy_sha256
            reason = told.reason(decision) if self._settings.reasons else ""
            if reason:
                attributes[names.REASON] = self._attributes[names.REASON] = reason
        self._event(names.POLICY_DECISION, attributes)

    def asks(self) -> str | None:
        """Return the span of the call that requests an approval."""
        return tracing.traceparent_of(self._span or trace.get_current_span())

    @fails_open
    def requested(self, request: ApprovalRequest, place: LogPlace, head: Checkpoint) -> None:
        """Add an event, and the place of the request in the log."""
        self._attributes.update(told.place(place, head))
        attributes = {
            names.APPROVAL: request.request_id,
            names.APPROVAL_EXPIRES: told.time_text(request.expires_at),
        }
        self._event(names.APPROVAL_REQUESTED, attributes)

    @fails_open
    def waits(self, request: ApprovalRequest) -> None:
        """Note that the call waits for people, which is no error."""
        self._request = request
        self._attributes[names.APPROVAL] = request.request_id
        self._attributes[names.APPROVAL_STATUS] = "pending"
        self._attributes[names.DECISION] = "approval"

    @fails_open
    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """Add an event for each answer."""
        self._request, self._answers = request, answers
        for answer in answers:
            self._event(names.APPROVAL_DECIDED, told.answer(answer, self._named))

    @fails_open
    def recorded(
        self, decision: Decision, invocation: LoggedInvocation, place: LogPlace, head: Checkpoint
    ) -> None:
        """Note the place of the record in the log, and end the span ``agentguard.authorize``."""
        self._decision, self._took = decision, time.perf_counter() - self._begun
        self._enforced = invocation.enforced
        if not self._records:
            return
        attributes = self._attributes
        attributes[names.DECISION] = decision.outcome
        attributes[names.INVOCATION_SHA256] = invocation.sha256
        if invocation.id is not None:
            attributes[names.INVOCATION] = invocation.id
        attributes.update(told.place(place, head))
        if self._request is not None:
            attributes[names.APPROVAL] = self._request.request_id
            status = told.STATUS.get(decision.code)
            if status is not None:
                attributes[names.APPROVAL_STATUS] = status
                attributes |= told.settled(status, self._answers, self._named)
        if self._settings.arguments:
            self._keep(names.TOOL_ARGUMENTS, "arguments", invocation.attachments)
        if not invocation.enforced:
            attributes[names.ENFORCED] = False
        is_refused = invocation.enforced and not decision.allowed
        self._end_authorize(told.refused(decision.code) if is_refused else None)

    def suspended(self) -> None:
        """Note that the tool pauses: its exception is no error."""
        self._suspended = True

    def handed_on(self) -> None:
        """Note that the tool hands the run on: its exception is no error."""
        self._handed_on = True

    @fails_open
    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),
        replay_of: str | None = None,
    ) -> None:
        """Note what became of the call."""
        self._outcome, self._outcome_error = status, error_type
        self._attributes[names.OUTCOME] = "suspended" if self._suspended else status
        if replay_of is not None:
            self._attributes[names.REPLAY_OF] = replay_of
        if self._settings.results:
            self._keep(names.TOOL_RESULT, "result", attachments)

    @fails_open
    def end(self, error: BaseException | None) -> None:
        """End the span, and count the call."""
        failure = self._failure(error)
        self._finish(failure)
        self._count(failure)

    # --- the span -------------------------------------------------------------------------------

    def _failure(self, error: BaseException | None) -> told.Failure | None:
        """Return why the call failed; None for a call that did not, or that waits or pauses."""
        steers = self._suspended or self._handed_on or isinstance(error, ApprovalPending)
        if error is None or steers:
            return None
        return told.failure(error, self._outcome, self._outcome_error)

    @fails_open
    def _finish(self, failure: told.Failure | None) -> None:
        self._end_authorize(failure)
        span = self._span
        if span is None:
            return
        if self._records:
            self._set_closing(span, failure)
        if self._host and failure is None and self._outcome != "ok":
            # a wait or a pause is no error; the host's owner would set one, and OK is final
            span.set_status(StatusCode.OK)
        if not self._host:
            span.end()

    def _end_authorize(self, failure: told.Failure | None) -> None:
        """End ``agentguard.authorize``; the attributes of a tool call are its host's."""
        span, self._authorize = self._authorize, None
        if span is not None:
            if self._records:
                attributes = self._closing(span, failure)
                span.set_attributes({k: v for k, v in attributes.items() if k not in _OF_TOOL})
            span.end()

    def _closing(self, span: Span, failure: told.Failure | None) -> dict[str, Any]:
        """Return the attributes that became known since the span began; set an error's status."""
        if failure is None:
            return self._attributes
        span.set_status(StatusCode.ERROR, failure.description)
        return self._attributes | failure.attributes

    def _set_closing(self, span: Span, failure: told.Failure | None) -> None:
        """Set the attributes that became known, and restore those that the tool has overwritten.

        A tool can write into the current span. Above its limit the SDK drops the oldest attributes,
        so the identity is set last.
        """
        closing = self._closing(span, failure)
        if not self._host:
            span.set_attributes(closing)
            if _has_just(span, self._about | self._identity | closing):
                return
        span.set_attributes(self._about | closing | self._identity)

    def _event(self, name: str, attributes: dict[str, Any]) -> None:
        if self._span is not None and self._records:
            self._span.add_event(name, attributes)

    def _keep(self, name: str, role: str, attachments: Sequence[Attachment]) -> None:
        for attachment in attachments:
            if attachment.role == role:
                self._attributes[name] = attachment.data.decode()

    def _named(self, name: str) -> str:
        return tracing.person(name, self._trust_domain, hashed=self._settings.hash_users)

    def __enter__(self) -> None:
        if self._context is not None:
            self._token = tracing.attach(self._context)

    def __exit__(self, *_raised: object) -> None:
        if self._context is not None:
            tracing.detach(self._token)

    # --- the metrics ----------------------------------------------------------------------------

    def _count(self, failure: told.Failure | None) -> None:
        if not metrics.is_set_up():
            return
        code = None if failure is None else failure.code
        decision = self._decision
        waits = self._attributes.get(names.APPROVAL_STATUS) == "pending"
        took = self._took if decision is not None else time.perf_counter() - self._begun
        decided: dict[str, str | bool] = {names.DECISION: "approval" if waits else "deny"}
        if decision is not None:
            decided[names.DECISION] = decision.outcome
            code = decision.code if self._enforced else None
        if not self._enforced:
            decided[names.ENFORCED] = False
        tool = self._invocation.tool.name
        about = {**decided, names.GEN_AI_AGENT_NAME: self._actor.name, names.TOOL_NAME: tool}
        if decision is not None and decision.code:
            about[names.DECISION_CODE] = decision.code
        if code:
            about[names.ERROR_TYPE] = code
        metrics.count_call(about, decided, seconds=took)
        if self._request is not None and self._answers and decision is not None:
            verdict = told.STATUS.get(decision.code)
            if verdict is not None:
                answered = max(answer.not_before for answer in self._answers)
                waited = max(0, answered - self._request.requested_at)
                metrics.record_approval(waited, verdict=verdict, tool=tool)


class Evaluation(Call):
    """Listens to an evaluation. It makes a span and counts only where an approval is requested.

    The span is then the span of the attempt that waits. The call itself comes later.
    """

    __slots__ = ("_asks", "_decided", "_open_span")

    def __init__(
        self, settings: Settings, trust_domain: str, actor: AgentIdentity, invocation: Invocation
    ) -> None:
        super().__init__(settings, trust_domain, actor, invocation)
        self._asks = False
        self._open_span: Callable[[], str | None] | None = None
        self._decided: tuple[Decision, str | None] | None = None

    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """Keep the function that starts the span."""
        self._open_span = lambda: self._open(authority, task_id, paused)
        return None

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """Keep the decision for the span."""
        self._decided = (decision, policy_sha256)

    @fails_open
    def asks(self) -> str | None:
        """Start the span, since the call requests an approval."""
        self._asks = True
        traceparent = self._open_span() if self._open_span is not None else None
        if self._decided is not None:
            super().decided(*self._decided)
        return traceparent

    def end(self, error: BaseException | None) -> None:
        """End the span and count the attempt, if an approval was requested."""
        if self._asks:
            super().end(error)


@fails_open
def _has_just(span: Span, attributes: Mapping[str, Any]) -> bool:
    """Whether a span has exactly these attributes, in this order.

    Spans of the SDK show their attributes; the API has no such property.
    """
    view = getattr(span, "attributes", None)
    if not isinstance(view, MappingProxyType):
        return False
    copy = view.copy()  # a comparison by the view's keys would cost more than to set them again
    same_names = [*copy] == [*attributes]
    return same_names and all(map(is_, copy.values(), attributes.values()))
