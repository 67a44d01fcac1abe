"""What became of a request for an approval: who answered it, and how its call ended.

``RequestStatus`` is read from the store while the request waits, and from the log afterwards
(``audit/request_status.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal, NamedTuple, Protocol

from agentguard.approvals.answer import Approval
from agentguard.errors import ApprovalError

RequestState = Literal["waiting", "approved", "rejected", "expired", "withdrawn", "given_up"]
RequestEnd = Literal["expired", "withdrawn"]
"""How a request ends whose call nobody has made again, as the log has the end."""

CallState = Literal["not_made", "ran", "failed", "unknown", "refused"]

_CALLS: Final = {
    "not_made": "its call was not made again",
    "ran": "its call ran",
    "failed": "its call ran, and the tool raised an exception",
    "unknown": "its call began, and the log does not say whether it ran",
}


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """What became of a request and of its call.

    ``state`` is ``waiting``, ``approved``, ``rejected``, ``expired``, ``withdrawn`` for a request
    whose call nobody will make any more, or ``given_up`` for a request that the guard has removed
    because its call could not run. ``answers`` are the valid answers, with ``approver``,
    ``verdict``, ``not_before`` (seconds since the epoch) and ``note``.

    ``call`` is ``not_made`` while nobody has made the call again, ``ran`` or ``failed`` (the tool
    raised an exception) once the log has the outcome, ``unknown`` for an allowed call without an
    outcome, and ``refused`` for a denied call: ``code`` and ``reason`` are those of the decision.
    ``invocation_id`` names the call in the log, and ``decided_at`` is the time of its decision (RFC
    3339, UTC); both are None where the call was not made again. ``ended_at`` is the time at which
    the log has the request as expired or withdrawn, None without that entry.
    """

    request_id: str
    state: RequestState
    answers: tuple[Approval, ...] = ()
    call: CallState = "not_made"
    code: str = ""
    reason: str = ""
    invocation_id: str | None = None
    decided_at: str | None = None
    ended_at: str | None = None

    def __str__(self) -> str:
        """Return the status as a sentence without its full stop."""
        verdict = {"approved": "approve", "rejected": "reject"}.get(self.state)
        answers = [one for one in self.answers if one.verdict == verdict]
        who = " and ".join(f"{one.approver} at {_moment(one.not_before)}" for one in answers)
        by = f" by {who}" if who else ""
        if self.state == "waiting":
            return f"the request {self.request_id} waits"
        states = {"expired": "has expired", "given_up": "was given up, because its call can't run"}
        state = states.get(self.state, f"was {self.state}")
        end = _CALLS.get(self.call, f"its call was refused [{self.code}]")
        if self.call == "not_made" and verdict is not None:  # its run may be about to go on
            end = "its call has not been made again yet"
        return f"the request {self.request_id} {state}{by}, and {end}"


class PastRequest(NamedTuple):
    """A request that is over: when it was asked (RFC 3339, UTC), by whom, and what became of it.

    ``agent`` is the URI of an instance.
    """

    requested_at: str
    agent: str
    principal: str
    tool: str
    status: RequestStatus


Shows = Callable[[str], bool]
"""Returns whether the reader may see the requests of the agent with this name."""


def shows_all(_agent: str) -> bool:
    """Show the requests of each agent: the ``Shows`` of the guard's own process."""
    return True


class History(Protocol):
    """What the log says of requests that do not wait any more; each method raises as a store."""

    def status(self, request_id: str) -> RequestStatus | None:
        """Return what became of the request whose id begins so; None for no such request."""

    def past(self, most: int, waiting: Collection[str]) -> list[PastRequest]:
        """Return the newest ``most`` requests but the ``waiting`` ones (ids), the oldest first."""


class RequestEndedError(ApprovalError):
    """A request does not wait any more; ``status`` says what became of the request."""

    default_code: ClassVar[str] = "request.ended"

    def __init__(self, status: RequestStatus) -> None:
        super().__init__(f"this answer comes too late: {status}")
        self.status = status

    def __reduce__(self) -> tuple[type[RequestEndedError], tuple[RequestStatus]]:
        return type(self), (self.status,)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
