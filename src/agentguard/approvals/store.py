"""What an inbox needs of the store in which requests wait for answers, and the store's limits.

``store/approvals.py`` has the requests beside the log, ``client/approvals.py`` those of a server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from agentguard.approvals.request import ApprovalRequest
from agentguard.errors import ApprovalError
from agentguard.signing.dsse import Envelope

Check = Callable[[Sequence[Envelope]], bool] | None
"""Whether one answer more may be stored beside these; None where nothing is checked.

It reads no log: the store is being written meanwhile.
"""


class Limits(NamedTuple):
    """The largest number of requests that may wait at once, per agent and per principal."""

    per_agent: int = 100
    per_principal: int = 100

    def check(self, waiting: Sequence[ApprovalRequest], request: ApprovalRequest) -> None:
        """Raise ``ApprovalError`` (``approval.limit``) if ``request`` would exceed a limit."""
        of_agent = sum(other.agent_name == request.agent_name for other in waiting)
        of_principal = sum(other.principal == request.principal for other in waiting)
        for requester, count, limit in (
            (f"agent {request.agent_name}", of_agent, self.per_agent),
            (request.principal, of_principal, self.per_principal),
        ):
            if count >= limit:
                message = (
                    f"{count} requests of {requester} wait for an approval already: have them "
                    "answered (agentguard approvals list), or see [approvals] in the configuration"
                )
                raise ApprovalError(message, code="approval.limit")


class StoredRequest(NamedTuple):
    """A request in the store, with the answers to the request, none of them verified.

    ``altered`` is true where the log has no such request for the call: somebody has changed the
    request in the store, or has put the request there. Then neither request nor answers count.
    ``is_over`` is true where no call can use the request any more, whatever people answer.
    """

    request: ApprovalRequest
    answers: tuple[Envelope, ...]
    altered: bool = False
    is_over: bool = False


Recorder = Callable[[StoredRequest, Callable[[Any], None] | None], object]
"""Puts on record that a request has ended and nobody has made its call again; may raise.

What it is given writes pages in the same commit (``AuditLog.append``).
"""


class InboxStore(Protocol):
    """What an inbox needs of a store of requests; each method raises ``StorageError``."""

    def read(self, key: str) -> StoredRequest | None:
        """Read the request under ``key`` and compare it with the log; None without a request."""

    def withdraw(self, request: ApprovalRequest) -> bool:
        """End a request; return whether no call has used it.

        Where the method returns true, no call can use the request afterwards, the recorder has put
        the end on record, once, and the store does not hold the request any more. A withdrawn
        request can be withdrawn again.
        """

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return ``(key, request)`` of each stored request that the log has, the oldest first."""

    def altered(self, now: int) -> list[str]:
        """Return the ids of stored requests that differ from the log's, or are not in the log.

        ``now`` is in seconds since the epoch; requests that have expired by then are left out.
        """

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> bool:
        """Store an answer to a request; return False, and store nothing, where ``check`` does.

        No other answer is stored between the check and this answer.
        """

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return the reason code and the reason why the call of a request can't run now, or None.

        Such a reason is a freeze, or a revocation of the agent or of anybody in the agent's chain.
        """
