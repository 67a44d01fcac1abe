"""The store of approvals: where requests wait for their answers.

``storage/approvals.py`` implements the protocol in the state's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from agentguard.approvals.request import ApprovalRequest
from agentguard.signing.dsse import Envelope


class StoredRequest(NamedTuple):
    """A request as it lies there, with the answers to it, none of them verified.

    ``altered`` says that the log has no such request for this call: somebody has changed it where
    it lies, or has laid it there. Nothing in it counts then.
    """

    request: ApprovalRequest
    answers: tuple[Envelope, ...]
    altered: bool = False


class Approvals(Protocol):
    """Where requests wait for their answers; shared by processes. Each raises ``StorageError``."""

    def has(self, key: str) -> bool:
        """Whether a request lies under ``key``. Asked at every call, so it costs little."""

    def recall(self, key: str) -> StoredRequest | None:
        """Read the request under ``key``, and hold it against the log; None if there is none."""

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Lay a request under ``key``, durably, and return the one that lies there then.

        Raises ``ApprovalError`` (``approval.limit``) where too many wait already.
        """

    def spend(self, request: ApprovalRequest, approval_ids: Sequence[str]) -> bool:
        """Use a request and its approvals up, durably; return whether none was used before.

        It is the request as the call rests on it: what lies there by now may be another.
        """

    def is_alone(self, request: ApprovalRequest) -> bool:
        """Whether the log has one call alone on a request, once that call is in it."""

    def withdraw(self, key: str) -> None:
        """Remove the request under ``key``, with its answers."""
