"""Reports of a call, for telemetry: a server records them, and the client's listener is told.

``Recorder`` is the listener of a call in the server (``flow.listener.CallListener``). The span of a
call is the client's own: the server asks a client that has spans for the span
(``flow.effects.Begin``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agentguard.approvals.answer import Approval
from agentguard.approvals.request import ApprovalRequest
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, LogPlace
from agentguard.call.decision import Decision
from agentguard.call.redaction import Redaction
from agentguard.errors import DecodeError
from agentguard.flow.authority import Authority
from agentguard.flow.listener import CallListener, LoggedInvocation
from agentguard.wire import values


class Recorder:
    """Records the reports of one call as JSON.

    ``redactions`` are the configuration's for the tool. A client that is not traced
    (``is_traced``) needs no report of an allowed call. ``take`` returns the reports since the last
    ``take``. Of several reports about one request, the first alone has the request, which can
    fill half of a frame's header.
    """

    def __init__(self, redactions: Sequence[Redaction], *, is_traced: bool) -> None:
        self._redactions = redactions
        self._is_traced = is_traced
        self._reports: list[list[Any]] = []
        self._told: ApprovalRequest | None = None

    def take(self) -> list[list[Any]]:
        """Return the reports so far, and forget them."""
        reports, self._reports, self._told = self._reports, [], None
        return reports

    def _report(self, *report: Any) -> None:
        self._reports.append([*report])

    def begin(self, _authority: Authority, _task_id: str | None, _paused: str | None, /) -> None:
        """Return no span: this client has none."""

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """Record that the policy has answered."""
        if self._is_traced:
            self._report("decided", values.decision(decision), policy_sha256)

    def asks(self) -> None:
        """Return no span: this client has none."""

    def requested(self, request: ApprovalRequest, place: LogPlace, head: Checkpoint) -> None:
        """Record the place of a request for an approval."""
        self._told = request
        text = request.dumps().decode()
        self._report("requested", text, values.log_place(place), values.head(head))

    def waits(self, request: ApprovalRequest) -> None:
        """Record that the call waits for answers."""
        self._report("waits", self._text(request))

    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """Record the answers."""
        self._report("answered", self._text(request), [one.as_json() for one in answers])

    def _text(self, request: ApprovalRequest) -> str | None:
        """Return a request for a report, None for that of the report before."""
        if request == self._told:
            return None
        self._told = request
        return request.dumps().decode()

    def recorded(
        self, decision: Decision, invocation: LoggedInvocation, place: LogPlace, head: Checkpoint
    ) -> None:
        """Record the place of the authorization."""
        if decision.allowed and not self._is_traced:
            return
        self._report(
            "recorded",
            values.decision(decision),
            [
                invocation.id,
                invocation.sha256,
                invocation.enforced,
                [*self._redactions, *decision.redactions],
            ],
            values.log_place(place),
            values.head(head),
        )

    def suspended(self) -> None:
        """Record nothing: the client knows how its tool has ended."""

    def handed_on(self) -> None:
        """Record nothing: the client knows how its tool has ended."""

    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),  # noqa: ARG002  the client has the result
        replay_of: str | None = None,
    ) -> None:
        """Record the outcome; the client has the result itself."""
        self._report("outcome", status, error_type, replay_of)

    def end(self, error: BaseException | None) -> None:
        """Record nothing: the client's call ends at the client."""

    def __enter__(self) -> object:
        """Enter no context: the span is in the client's process."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave no context."""


Keep = Callable[[Sequence[Redaction]], Sequence[Attachment]]
"""Returns the arguments of a call for its span, redacted."""


def tell(reports: Any, listener: CallListener, kept: Keep) -> None:
    """Tell ``listener`` of each report; raises ``DecodeError`` (``frame.malformed``)."""
    text: Any = None  # of the request of the report before
    for report in values.reads("list of reports", lambda: [*reports]):
        try:
            name, *parts = report
            if name in _OF_REQUESTS:
                text = parts[0] = text if parts[0] is None else parts[0]
            _TELLERS[name](listener, kept, *parts)
        except (LookupError, TypeError, ValueError) as error:
            raise DecodeError("not a report", code="frame.malformed") from error


def _requested(told: CallListener, _kept: Keep, request: str, place: Any, head: Any) -> None:
    told.requested(_request(request), values.read_log_place(place), values.read_head(head))


def _answered(told: CallListener, _kept: Keep, request: str, answers: Any) -> None:
    told.answered(_request(request), [values.read_approval(one) for one in answers])


def _recorded(
    told: CallListener, kept: Keep, decision: Any, invocation: Any, place: Any, head: Any
) -> None:
    decided = values.read_decision(decision)
    invocation_id, sha256, is_enforced, redactions = invocation
    attachments = kept([values.texts(one) for one in redactions])
    logged = LoggedInvocation(invocation_id, sha256, attachments, is_enforced)
    told.recorded(decided, logged, values.read_log_place(place), values.read_head(head))


_TELLERS: Final[Mapping[str, Callable[..., object]]] = {
    "decided": lambda told, _kept, decision, sha256: told.decided(
        values.read_decision(decision), sha256
    ),
    "requested": _requested,
    "waits": lambda told, _kept, request: told.waits(_request(request)),
    "answered": _answered,
    "recorded": _recorded,
    "outcome": lambda told, _kept, status, error_type, replay_of: told.outcome(
        status, error_type, (), replay_of
    ),
}


_OF_REQUESTS: Final = frozenset({"requested", "waits", "answered"})
"""The reports whose first member is a request."""


def _request(text: object) -> ApprovalRequest:
    return ApprovalRequest.loads(values.text(text).encode())
