"""The inbox where people answer: what waits, and the answers to it, verified before they are kept.

``guard.approvals`` is one, and so is what ``agentguard approvals`` works with; the line itself
reads what is kept here through ``approvals/store.py``, and verifies it once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

from agentguard.approvals import request as approval
from agentguard.approvals import roster
from agentguard.approvals.request import ApprovalRequest, Verdict
from agentguard.approvals.roster import Answer, Approver, Roster
from agentguard.approvals.store import Approvals
from agentguard.errors import AgentguardError, ApprovalError
from agentguard.identity.trust import seconds
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey, Signer

LOOK_EVERY: Final = 0.05
"""Seconds between two looks of somebody who waits."""


class Store(Approvals, Protocol):
    """Where requests and answers lie; each method raises ``StorageError``."""

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return the requests that the log has, with what they lie under, the oldest first."""

    def altered(self, now: int) -> list[str]:
        """Return the ids of requests that lie there, and that the log does not have so.

        ``now`` is in seconds since the epoch: those that have expired by then are left out.
        """

    def answer(self, request: ApprovalRequest, sealed: Envelope) -> None:
        """Keep an answer."""


class ApprovalInbox:
    """The requests that wait, and the answers to them."""

    def __init__(self, store: Store, people: Roster, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._roster = people
        self._clock = clock
        self._keys: dict[str, str] = {}

    def pending(self) -> list[ApprovalRequest]:
        """Return the requests that can still be answered, the oldest first."""
        now = seconds(self._clock())
        return [asked for _key, asked in self._store.pending() if now < asked.expires_at]

    def untaken(self) -> list[ApprovalRequest]:
        """Return the expired requests that people had approved: nobody made their calls again.

        They lie there until another call asks for an approval.
        """
        now = seconds(self._clock())
        expired = [asked for _key, asked in self._store.pending() if now >= asked.expires_at]
        return [request for request in expired if self._was_approved(request)]

    def _was_approved(self, request: ApprovalRequest) -> bool:
        answers = self._answers(request, at=request.expires_at - 1)
        if any(answer.said.verdict == "reject" for answer in answers):
            return False
        requesters = frozenset(request.requesters)
        return roster.missing(request.requirements, answers, requesters=requesters) is None

    def altered(self) -> list[str]:
        """Return the ids of requests that somebody has changed where they lie: nobody answers them.

        The log has another request of this id, or none. The call, made again, is refused once, and
        asks anew after that.
        """
        return self._store.altered(seconds(self._clock()))

    def find(self, request_id: str) -> ApprovalRequest:
        """Return the request whose id begins so, as the log has it.

        Raises ``ApprovalError`` (``request.unknown``, ``request.ambiguous``, ``request.altered``).
        """
        found = [one for one in self.pending() if one.request_id.startswith(request_id)]
        if not found:
            self._require_unaltered(request_id)
        if not found or not request_id:
            message = f"no request {request_id} waits: see agentguard approvals list"
            raise ApprovalError(message, code="request.unknown")
        if len(found) > 1:
            message = f"the ids of {len(found)} requests begin with {request_id}: name more of it"
            raise ApprovalError(message, code="request.ambiguous")
        return found[0]

    def at(self, call_site: str) -> ApprovalRequest | None:
        """For adapters: return the request of the call at this site, expired or not.

        ``call_site`` is the digest of a site in a thread (``CallSite.digest``). None for one that
        was changed where it lies, too: the call, made again, is refused for it.
        """
        asked = self._store.recall(call_site)
        return asked.request if asked is not None and not asked.altered else None

    def key_of(self, request: ApprovalRequest) -> str | None:
        """For adapters: return what ``at`` finds the request by; None if it does not lie here."""
        return self._key(request)

    def waits(self, request: ApprovalRequest) -> bool:
        """Whether a request lies there, can still be answered, and has to be."""
        if seconds(self._clock()) >= request.expires_at:
            return False
        return not self._is_decided(request)

    def withdraw(self, request: ApprovalRequest) -> None:
        """Take a request away, with its answers: its call will not be made any more."""
        key = self._key(request)
        if key is not None:
            self._store.withdraw(key)

    def approver(self, key: PublicKey) -> Approver:
        """Return whose key it is; raises ``VerificationError`` (``approval.unknown``)."""
        return self._roster.of_key(key)

    def answers(self, request: ApprovalRequest) -> list[Answer]:
        """Return the answers that are good by now, those that do not suffice among them."""
        return self._answers(request, at=seconds(self._clock()))

    def _answers(self, request: ApprovalRequest, *, at: int) -> list[Answer]:
        good: list[Answer] = []
        key = self._key(request)
        asked = self._store.recall(key) if key is not None else None
        for sealed in asked.answers if asked is not None else ():
            try:
                good.append(self._roster.verify(sealed, request, at=at))
            except AgentguardError:
                continue
        return good

    def missing(self, request: ApprovalRequest) -> str | None:
        """Return what a request waits for, in words; None once it is answered."""
        answers = self.answers(request)
        if any(answer.said.verdict == "reject" for answer in answers):
            return None
        requesters = frozenset(request.requesters)
        return roster.missing(request.requirements, answers, requesters=requesters)

    def approve(self, request: ApprovalRequest, signer: Signer, *, note: str = "") -> Answer:
        """Approve a request as whoever on the roster has the signer's key; raises as ``take``."""
        return self._sign(request, "approve", signer, note)

    def reject(self, request: ApprovalRequest, signer: Signer, *, note: str = "") -> Answer:
        """Reject a request; the agent is told the ``note``. Raises as ``take``."""
        return self._sign(request, "reject", signer, note)

    def vouch(
        self, request: ApprovalRequest, verdict: Verdict, *, principal: str, note: str = ""
    ) -> Answer:
        """Answer for somebody whom this program has authenticated, without their signature.

        It counts only with ``[approvals] application = true``, and only where nobody is named.
        ``principal`` is as in ``user:bob``. Raises as ``take``, and ``ApprovalError``
        (``principal.malformed``).
        """
        return self.take(request, self._answer(request, verdict, principal, note, None))

    def take(self, request: ApprovalRequest, sealed: Envelope) -> Answer:
        """Keep an answer that somebody else has made, if it counts for the request.

        Raises ``ApprovalError`` for who may not approve this request (``approval.refused``), and
        for a request that does not wait, or not as it is given (``request.unknown``,
        ``request.altered``); ``VerificationError`` or ``DecodeError`` (see ``Roster.verify``), or
        ``StorageError``.
        """
        if self._key(request) is None:
            self._require_unaltered(request.request_id)
            message = f"the request {request.request_id} does not wait here any more"
            raise ApprovalError(message, code="request.unknown")
        answer = self._roster.verify(sealed, request, at=seconds(self._clock()))
        self._require_counts(request, answer)
        self._store.answer(request, sealed)
        return answer

    def loads(self, data: bytes) -> tuple[ApprovalRequest, Envelope]:
        """Read an answer that came in a file, and find its request; raises as ``take``."""
        sealed = Envelope.parse(canonical.loads(data))
        return self.find(approval.read(sealed).request_id), sealed

    def wait(self, request: ApprovalRequest, *, timeout: timedelta | float) -> bool:
        """Wait until a request is answered, one way or the other, or has expired.

        Returns False where neither comes within ``timeout``: seconds, or a ``timedelta``.
        """
        end = time.monotonic() + _in_seconds(timeout)
        while not self._is_over(request):
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK_EVERY)
        return True

    async def await_(self, request: ApprovalRequest, *, timeout: timedelta | float) -> bool:  # noqa: ASYNC109
        """Wait as ``wait`` does, without holding the event loop."""
        import asyncio  # noqa: PLC0415  a program without an event loop does without it

        end = time.monotonic() + _in_seconds(timeout)
        while not await asyncio.to_thread(self._is_over, request):
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(LOOK_EVERY)
        return True

    def _is_over(self, request: ApprovalRequest) -> bool:
        return seconds(self._clock()) >= request.expires_at or self._is_decided(request)

    def _is_decided(self, request: ApprovalRequest) -> bool:
        return self._key(request) is None or self.missing(request) is None

    def _key(self, request: ApprovalRequest) -> str | None:
        """Return what a request lies under, None if it is gone; who waits looks for it once."""
        wanted = request.request_id
        if wanted not in self._keys:
            self._keys.update((asked.request_id, key) for key, asked in self._store.pending())
        key = self._keys.get(wanted)
        asked = self._store.recall(key) if key is not None else None
        return key if asked is not None and asked.request == request and not asked.altered else None

    def _require_unaltered(self, request_id: str) -> None:
        altered = [one for one in self.altered() if one.startswith(request_id)]
        if altered and request_id:
            message = (
                f"the request {altered[0]} was changed where it lies, and is not the one in the "
                "log: it is not shown, and nobody can answer it; the call, made again, is refused "
                "once, and asks anew after that. Run agentguard audit verify, and see who can "
                "write in the state"
            )
            raise ApprovalError(message, code="request.altered")

    def _sign(
        self, request: ApprovalRequest, verdict: Verdict, signer: Signer, note: str
    ) -> Answer:
        principal = self.approver(signer.public_key).principal
        return self.take(request, self._answer(request, verdict, principal, note, signer))

    def _answer(
        self,
        request: ApprovalRequest,
        verdict: Verdict,
        principal: str,
        note: str,
        signer: Signer | None,
    ) -> Envelope:
        return approval.answer(
            request,
            verdict,
            approver=principal,
            approval_id=os.urandom(16).hex(),
            at=max(seconds(self._clock()), request.requested_at),
            note=note,
            signer=signer,
        )

    def _require_counts(self, request: ApprovalRequest, answer: Answer) -> None:
        """Refuse an approval that would help nowhere; anybody on the roster may reject."""
        if answer.said.verdict == "reject":
            return
        requesters = frozenset(request.requesters)
        reasons = [roster.counts(needed, answer, requesters) for needed in request.requirements]
        if all(reason is not None for reason in reasons):
            message = f"this approval would not count: {reasons[0]}"
            raise ApprovalError(message, code="approval.refused")


def _in_seconds(timeout: timedelta | float) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
