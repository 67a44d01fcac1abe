"""Approvals of a guard whose requests are in a server: the store, and the inbox.

A signed answer counts by its signature, and the server verifies the answer once more. The
application's own word counts where the server's ``[clients]`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, ClassVar

from agentguard.approvals.answer import Verdict
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer, Roster
from agentguard.approvals.status import PastRequest, RequestStatus
from agentguard.approvals.store import Check, StoredRequest
from agentguard.client.link import Link
from agentguard.errors import DecodeError
from agentguard.identity.trust import seconds
from agentguard.signing.dsse import Envelope
from agentguard.wire import values


class ClientRequests:
    """The store and the history of requests in a server, as an inbox needs them.

    They are ``approvals.store.InboxStore`` and ``approvals.status.History``.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def read(self, key: str) -> StoredRequest | None:
        """Read the request under ``key``; None without a request."""
        found = self._link.request({"op": "approvals.read", "key": key}).header
        if found.get("request") is None:
            return None

        def read() -> StoredRequest:
            answers = tuple(map(Envelope.parse, found["answers"]))
            return StoredRequest(_read(found["request"]), answers, found["altered"] is True)

        return values.reads("stored request", read)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return ``(key, request)`` of each request that this client may see, the oldest first."""
        found: list[tuple[str, ApprovalRequest]] = []
        after: tuple[int, str] | None = None
        while True:
            answer = self._link.request({"op": "approvals.pending", "after": after})
            keys = values.texts(answer.header.get("keys"))
            if len(keys) != len(answer.blobs):
                raise DecodeError("not a list of requests", code="frame.malformed")
            found += zip(keys, map(ApprovalRequest.loads, answer.blobs), strict=True)
            if not keys or answer.header.get("are_all") is True:
                return found
            newest = found[-1][1]
            after = newest.requested_at, newest.request_id

    def altered(self, now: int) -> list[str]:
        """Return the ids of stored requests that somebody has changed."""
        found = self._link.request({"op": "approvals.altered", "now": now}).header
        return list(values.texts(found.get("altered")))

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> bool:  # noqa: ARG002
        """Store a signed answer to a request; the server checks the answer itself."""
        asked = {"op": "approvals.answer", **_asked(request), "answer": envelope.as_json()}
        self._link.request(asked)
        return True

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return the reason code and the reason why the request's call can't run now, or None."""
        asked = {"op": "approvals.refusal", **_asked(request)}
        found: Any = self._link.request(asked).header.get("refusal")
        return values.reads(
            "refusal",
            lambda: None if found is None else (values.text(found[0]), values.text(found[1])),
        )

    def withdraw(self, request: ApprovalRequest) -> bool:
        """Withdraw a request; return whether no call has used it."""
        asked = {"op": "approvals.withdraw", **_asked(request)}
        return self._link.request(asked).header.get("withdrawn") is True

    def past(self, most: int, waiting: Collection[str]) -> list[PastRequest]:
        """Return the newest ``most`` requests that are over; the server knows which wait."""
        asked = {"op": "approvals.ended", "most": most}
        found: Any = self._link.request(asked).header.get("ended")
        past = [values.read_past_request(one) for one in values.reads("list", lambda: [*found])]
        return [one for one in past if one.status.request_id not in waiting]

    def status(self, request_id: str) -> RequestStatus | None:
        """Return what became of a request that does not wait any more."""
        asked = {"op": "approvals.history", "request_id": request_id}
        found = self._link.request(asked).header.get("status")
        return None if found is None else values.read_status(found)


class ClientInbox(ApprovalInbox):
    """The inbox of a client: the server decides whether the application's word counts."""

    _longest_pause: ClassVar[float] = 1.0  # many programs may wait at one server

    def __init__(self, link: Link, roster: Roster, clock: Callable[[], datetime]) -> None:
        store = ClientRequests(link)
        super().__init__(store, roster, clock, history=store)
        self._link = link

    def vouch(
        self, request: ApprovalRequest, verdict: Verdict, *, principal: str, note: str = ""
    ) -> Answer:
        """Answer for a principal whom this program has authenticated (``ApprovalInbox.vouch``).

        Raises ``ApprovalError`` (``approval.refused``) where the word of this client does not
        count.
        """
        asked = {**_vouched(request, verdict, principal), "note": note}
        envelope = Envelope.parse(self._link.request(asked).header.get("answer"))
        return self._roster.verify(envelope, request, at=seconds(self._clock()))

    def check(self, request: ApprovalRequest, verdict: Verdict, *, principal: str) -> None:
        """Raise as ``vouch`` would for this answer, and store nothing."""
        self._link.request({**_vouched(request, verdict, principal), "only_checks": True})


def _vouched(request: ApprovalRequest, verdict: Verdict, principal: str) -> dict[str, Any]:
    return {
        "op": "approvals.vouch",
        **_asked(request),
        "verdict": verdict,
        "principal": principal,
        "note": "",
    }


def _asked(request: ApprovalRequest) -> dict[str, str]:
    return {"request": request.dumps().decode()}


def _read(text: object) -> ApprovalRequest:
    if not isinstance(text, str):
        raise DecodeError("expected a request", code="frame.malformed")
    return ApprovalRequest.loads(text.encode())
