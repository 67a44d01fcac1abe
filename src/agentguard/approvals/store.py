"""The protocols of the store in which requests wait for answers, and the limits of the store.

``storage/approval_files.py`` implements the protocols in the state's folder, and
``storage/memory_state.py`` in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from agentguard.approvals.request import ApprovalRequest
from agentguard.errors import ApprovalError
from agentguard.signing.dsse import Envelope

Check = Callable[[], None] | None
"""Raises an error where an answer may not be stored any more; None where nothing is checked."""


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


Recorder = Callable[[StoredRequest], object]
"""Puts on record that a request has ended and nobody has made its call again; may raise.

The store keeps others from the request meanwhile: a recorder does not call the store.
"""


class Approvals(Protocol):
    """What calls need of a store of requests, which all processes of a state share.

    Each method raises ``StorageError``.
    """

    def has(self, key: str) -> bool:
        """Return whether a request is stored under ``key``; cheap, for it runs in every call."""

    def read(self, key: str) -> StoredRequest | None:
        """Read the request under ``key`` and compare it with the log; None without a request."""

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Store a request under ``key``, durably, and return the request that is stored then.

        A stored request that the log has stays. Requests whose time is over end, and are removed.
        Raises ``ApprovalError`` (``approval.limit``) where too many requests wait already.
        """

    def remove(self, key: str) -> None:
        """Remove the request under ``key``, with its answers, once its call is decided."""


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

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> None:
        """Store an answer to a request, unless ``check`` raises an error.

        No other answer is stored between the check and this answer.
        """

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return the reason code and the reason why the call of a request can't run now, or None.

        Such a reason is a freeze, or a revocation of the agent or of anybody in the agent's chain.
        """


class Store(Approvals, InboxStore, Protocol):
    """A store of requests for the calls, and for an inbox; each method raises ``StorageError``."""

    def expire(self, now: int) -> None:
        """End the requests whose time is over at ``now`` (epoch seconds).

        The recorder puts each end on record, once, whichever processes look, unless a call has used
        the request. The request stays for its call, which is told so. Raises what the recorder
        raises.
        """

    def announce(self, request: ApprovalRequest) -> bool:
        """Mark that people hear of a request's coming end; return whether nobody had before."""
