"""What the steps of a call tell telemetry: the protocol ``CallListener``.

``telemetry/calls.py`` makes spans and metrics of what a listener is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from agentguard.approvals.answer import Approval
from agentguard.approvals.request import ApprovalRequest
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, LogPlace
from agentguard.call.decision import Decision
from agentguard.flow.authority import Authority


class LoggedInvocation(NamedTuple):
    """An invocation in the log: its id, its digest (hex), and what is kept beside the entry.

    Where the decision is not ``enforced`` (mode ``observe``), the call runs whatever it is.
    """

    id: str | None
    sha256: str
    attachments: Sequence[Attachment]
    enforced: bool


class CallListener(Protocol):
    """Is told what happens to one call, for telemetry, and has no say.

    A listener raises nothing. The call starts a span with ``begin``; the drivers enter the span's
    context (``__enter__``) for what runs somebody else's code: facts, the engine and the tool.
    """

    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """The call is made under ``authority``; return the call's span as a W3C ``traceparent``.

        ``paused`` is the span of the earlier attempt that asked for an approval, None for none.
        """

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """The policy has answered; or the call was refused without the policy (no digest)."""

    def asks(self) -> str | None:
        """A request for an approval is about to be made; return its span as a ``traceparent``."""

    def requested(self, request: ApprovalRequest, place: LogPlace, head: Checkpoint) -> None:
        """The request for an approval is in the log, at ``place``."""

    def waits(self, request: ApprovalRequest) -> None:
        """The call waits for answers to ``request``."""

    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """The request has ``answers``, each an approval or a rejection."""

    def recorded(
        self,
        decision: Decision,
        invocation: LoggedInvocation,
        place: LogPlace,
        head: Checkpoint,
    ) -> None:
        """The authorization entry with ``decision`` is in the log, at ``place``."""

    def suspended(self) -> None:
        """The framework has paused the tool, by an exception that is no error."""

    def handed_on(self) -> None:
        """The framework goes on elsewhere, by an exception of the tool that is no error."""

    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),
        replay_of: str | None = None,
    ) -> None:
        """The outcome is in the log or about to be, with ``attachments`` (the result) beside it."""

    def end(self, error: BaseException | None) -> None:
        """The call ends with ``error``, or with a result (None)."""

    def __enter__(self) -> object:
        """Enter the context of the call's span."""

    def __exit__(self, *raised: object) -> None:
        """Leave the context."""
