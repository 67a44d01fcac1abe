"""The inbox: people list the requests that wait, and answer them.

``guard.approvals`` is an inbox, and ``agentguard approvals`` works with one. The inbox verifies an
answer before the store keeps the answer. A guarded call reads the answers through
``approvals/store.py`` and verifies each once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar, Final

from agentguard.approvals.answer import Verdict, read_answer, seal_answer
from agentguard.approvals.application import RoleLookUp, application_roles
from agentguard.approvals.quorum import is_rejected, lacking, may_reject, require_counts
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer, Approver, Roster
from agentguard.approvals.status import (
    History,
    PastRequest,
    RequestEndedError,
    RequestState,
    RequestStatus,
)
from agentguard.approvals.store import Check, InboxStore
from agentguard.errors import AgentguardError, ApprovalError, VerificationError
from agentguard.identity.principal import is_principal
from agentguard.identity.trust import seconds
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey, Signer

POLL_INTERVAL: Final = 0.05
"""Seconds between the first two polls while ``ApprovalInbox.wait`` waits."""


_UNSEEN: Final = ("not_made", None)
"""Call and end of a request of which the log has neither."""


class ApprovalInbox:
    """The requests that wait, and the answers to them."""

    # the most seconds between two polls: the pause doubles up to it
    _longest_pause: ClassVar[float] = POLL_INTERVAL

    def __init__(
        self,
        store: InboxStore,
        roster: Roster,
        clock: Callable[[], datetime],
        roles: RoleLookUp | None = None,
        history: History | None = None,
        end_expired: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._roster = roster
        self._clock = clock
        self._roles = roles
        self._history = history
        self._end_expired = end_expired
        self._keys: dict[str, str] = {}

    def pending(self) -> list[ApprovalRequest]:
        """Return the requests that can still be answered, the oldest first."""
        self._end_expired()
        now = seconds(self._clock())
        return [request for _key, request in self._store.pending() if now < request.expires_at]

    def expired_approved(self) -> list[ApprovalRequest]:
        """Return the expired requests that people had approved, and whose calls nobody made again.

        The store removes these requests when another call asks for an approval. ``ended`` has them
        afterwards, too.
        """
        now = seconds(self._clock())
        expired = [one for _key, one in self._store.pending() if now >= one.expires_at]
        return [request for request in expired if self._was_approved(request)]

    def _was_approved(self, request: ApprovalRequest) -> bool:
        answers = self._answers(request, at=request.expires_at - 1)
        return not is_rejected(answers) and lacking(request, answers) is None

    def altered(self) -> list[str]:
        """Return the ids of the requests that somebody has changed in the store.

        The log has another request with this id, or none. Nobody can answer such a request. The
        next attempt of its call is refused; the attempt after that asks for a new approval.
        """
        return self._store.altered(seconds(self._clock()))

    def find(self, request_id: str) -> ApprovalRequest:
        """Return the pending request whose id begins with ``request_id``.

        Raises ``ApprovalError`` (``request.unknown``, ``request.ambiguous``, ``request.altered``),
        and ``RequestEndedError`` (``request.ended``) for a request that does not wait any more.
        """
        _require_id(request_id)
        if not request_id:
            message = "the id of the request is empty: agentguard approvals list shows the ids"
            raise ApprovalError(message, code="request.unknown")
        matches = [one for one in self.pending() if one.request_id.startswith(request_id)]
        if not matches:
            raise self._ended(request_id)
        if len(matches) > 1:
            number = len(matches)
            message = f"{number} requests have ids that begin with {request_id}: give a longer id"
            raise ApprovalError(message, code="request.ambiguous")
        return matches[0]

    def status(self, request_id: str) -> RequestStatus:
        """Return what became of a request: who answered, and how its call ended.

        The log tells of a request that does not wait any more. Raises ``ApprovalError``
        (``request.unknown``) for a request that neither the store nor the log has, and
        ``StorageError``.
        """
        _require_id(request_id)
        self._end_expired()
        stored = [one for _key, one in self._store.pending() if one.request_id == request_id]
        if stored:
            return self._full_status(stored[0], self._stored_status(stored[0]))
        status = self._logged_status(request_id)
        if status is None:
            message = f"there is no request {request_id}: see agentguard approvals list"
            raise ApprovalError(message, code="request.unknown")
        return status

    def ended(self, *, most: int = 50) -> list[PastRequest]:
        """Return the newest ``most`` requests that are over, the oldest first.

        Each has the ``status``, which says what ended the request and why. Raises
        ``StorageError``.
        """
        self._end_expired()
        now, history = seconds(self._clock()), self._history
        stored = {one.request_id: one for _key, one in self._store.pending()}
        waiting = {key for key, one in stored.items() if now < one.expires_at}
        past = [] if history is None else history.past(most, waiting)
        return [  # of a request that no guard has ended yet, the store has the answers
            one._replace(status=self._stored_status(stored[one.status.request_id]))
            if one.status.request_id in stored and (one.status.call, one.status.ended_at) == _UNSEEN
            else one
            for one in past
        ]

    def _stored_status(self, request: ApprovalRequest) -> RequestStatus:
        key = self._key(request)
        stored = self._store.read(key) if key is not None else None
        return self._status_by(request, () if stored is None else stored.answers)

    def _status_by(self, request: ApprovalRequest, envelopes: Sequence[Envelope]) -> RequestStatus:
        now = seconds(self._clock())
        answers = self._valid(request, envelopes, at=min(now, request.expires_at - 1))
        stated = tuple(answer.approval for answer in answers)
        state: RequestState = "waiting"
        if is_rejected(answers):
            state = "rejected"
        elif now >= request.expires_at:
            state = "expired"
        elif lacking(request, answers) is None:
            state = "approved"
        return RequestStatus(request.request_id, state, stated)

    def _full_status(self, request: ApprovalRequest, status: RequestStatus) -> RequestStatus:
        """Complete what the store said of a request a moment ago with what the log says of it.

        The log may have a refusal of its call, and its call may have been decided in that moment.
        """
        is_open = status.state == "waiting" and self._key(request) is not None
        logged = None if is_open else self._logged_status(request.request_id)
        if logged is None or status.state == "waiting":
            return logged or status
        if logged.call == "not_made":
            return replace(status, ended_at=logged.ended_at)
        if logged.state == "given_up":  # a call was refused, and the request waits on
            return replace(logged, state=status.state, answers=status.answers)
        return logged

    def _logged_status(self, request_id: str) -> RequestStatus | None:
        return None if self._history is None else self._history.status(request_id)

    def _ended(self, request_id: str) -> ApprovalError:
        """Return the error of an answer to a request that is not in the store."""
        self._require_unaltered(request_id)
        status = self._logged_status(request_id)
        if status is not None:
            return RequestEndedError(status)
        message = f"no request {request_id} waits: see agentguard approvals list"
        return ApprovalError(message, code="request.unknown")

    def _require_undecided(self, request: ApprovalRequest, verdict: Verdict) -> None:
        """Raise ``RequestEndedError`` for a click that would change nothing."""
        self._require_stored(request)
        status = self._stored_status(request)
        if not _changes(status, verdict):
            raise RequestEndedError(self._full_status(request, status))

    def _require_stored(self, request: ApprovalRequest) -> None:
        if seconds(self._clock()) >= request.expires_at:
            self._end_expired()
        if self._key(request) is None:
            raise self._ended(request.request_id)

    @property
    def can_answer(self) -> bool:
        """For adapters: whether anybody can answer; else no call waits for an approval."""
        return self._roster.can_answer

    def request_at(self, call_site: str) -> ApprovalRequest | None:
        """For adapters: return the request of the call at this site, expired or not.

        ``call_site`` is the digest of the call's place in a run of the framework
        (``CallSite.digest``). Returns None also for a request that somebody has changed in the
        store: the next attempt of its call is refused.
        """
        stored = self._store.read(call_site)
        return stored.request if stored is not None and not stored.altered else None

    def key_of(self, request: ApprovalRequest) -> str | None:
        """For adapters: return the store's key of a request, with which ``request_at`` finds it.

        Returns None for a request that is not in the store.
        """
        return self._key(request)

    def is_waiting(self, request: ApprovalRequest) -> bool:
        """Return whether a request is in the store, has not expired, and lacks answers.

        No request waits where nobody can answer (``can_answer``).
        """
        if not self.can_answer or seconds(self._clock()) >= request.expires_at:
            return False
        return not self._is_decided(request)

    def withdraw(self, request: ApprovalRequest) -> bool:
        """Withdraw a request, because nobody will make its call any more.

        Returns True where no call has used the request's approvals, and none can any more. Returns
        False where a call has: it ran, runs now, or was refused afterwards, as the log will say.
        """
        return self._store.withdraw(request)

    def approver(self, key: PublicKey) -> Approver:
        """Return the approver who has ``key``.

        Raises ``VerificationError`` (``approval.unknown``).
        """
        return self._roster.approver_of(key)

    def answers(self, request: ApprovalRequest) -> list[Answer]:
        """Return the valid answers to a request, the earliest first, enough or not."""
        return self._answers(request, at=seconds(self._clock()))

    def _answers(self, request: ApprovalRequest, *, at: int) -> list[Answer]:
        key = self._key(request)
        stored = self._store.read(key) if key is not None else None
        return [] if stored is None else self._valid(request, stored.answers, at=at)

    def _valid(
        self, request: ApprovalRequest, envelopes: Sequence[Envelope], *, at: int
    ) -> list[Answer]:
        answers: list[Answer] = []
        for envelope in envelopes:
            with suppress(AgentguardError):
                answers.append(self._roster.verify(envelope, request, at=at))
        return sorted(answers, key=lambda one: (one.approval.not_before, one.approval.approver))

    def missing(self, request: ApprovalRequest) -> str | None:
        """Return in words which approvals a request lacks.

        Returns None for a request that was rejected, or that has enough approvals.
        """
        answers = self.answers(request)
        return None if is_rejected(answers) else lacking(request, answers)

    def approve(self, request: ApprovalRequest, signer: Signer, *, note: str = "") -> Answer:
        """Approve a request as the approver who has the signer's key; raises as ``accept``."""
        return self._sign(request, "approve", signer, note)

    def reject(self, request: ApprovalRequest, signer: Signer, *, note: str = "") -> Answer:
        """Reject a request; the agent gets the ``note``. Raises as ``accept``."""
        return self._sign(request, "reject", signer, note)

    def vouch(
        self, request: ApprovalRequest, verdict: Verdict, *, principal: str, note: str = ""
    ) -> Answer:
        """Answer for a principal whom this program has authenticated, without a signature.

        The answer counts only with ``[approvals] application = true``, and only for requirements
        that name no approvers. Where a requirement names roles, the principal needs one that the
        configuration lists as ``application_roles``: ``[approvals] roles`` says which roles the
        principal has, or else ``[approvers]``. ``principal`` is a name such as ``user:bob``.
        Raises as ``accept``, and ``ApprovalError``: ``principal.malformed``, ``roles.failed``,
        ``approval.unknown``. The request waits on after an error. A second answer that would change
        nothing raises ``RequestEndedError``, whose ``status`` says what became of the call: also
        one of two answers at once, whichever processes take them.
        """
        # whoever is too late learns so, and not that the answer would not count
        self._require_undecided(request, verdict)

        def check(answers: Sequence[Envelope]) -> bool:
            return _changes(self._status_by(request, answers), verdict)

        return self._accept(request, self._by_word(request, verdict, principal, note), check)

    def _by_word(
        self, request: ApprovalRequest, verdict: Verdict, principal: str, note: str
    ) -> Envelope:
        roles: tuple[str, ...] = ()
        needs_role = verdict == "approve" or not may_reject(principal, request, self._roster)
        if self._roster.application and is_principal(principal) and needs_role:
            roles = application_roles(self._roster, principal, self._roles)
        return self._answer(request, verdict, principal, note, None, roles)

    def check(self, request: ApprovalRequest, verdict: Verdict, *, principal: str) -> None:
        """Raise as ``vouch`` would for this answer, and store nothing.

        An application learns here whether to show somebody the buttons.
        """
        self._require_undecided(request, verdict)
        self._verified(request, self._by_word(request, verdict, principal, ""))

    def accept(self, request: ApprovalRequest, envelope: Envelope) -> Answer:
        """Store a signed answer to a request, if the answer counts.

        Raises ``ApprovalError`` for an approver who may not approve this request
        (``approval.refused``), for a request that does not wait, or differs from the one that
        waits (``request.ended``, ``request.unknown``, ``request.altered``), and for an approval
        during a freeze or after a revocation (``domain.frozen``, ``delegation.revoked``), while a
        rejection counts; ``VerificationError`` or ``DecodeError`` (see ``Roster.verify``), or
        ``StorageError``. An unsigned answer is refused (``approval.unsigned``): whoever writes the
        answer could name any principal, and the application gives its word with ``vouch`` alone.
        """
        if not envelope.signatures:
            message = "the answer is not signed: an application answers with guard.approvals.vouch"
            raise VerificationError(message, code="approval.unsigned")
        return self._accept(request, envelope)

    def _accept(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> Answer:
        answer = self._verified(request, envelope)
        try:
            is_stored = self._store.answer(request, envelope, check)
        except ApprovalError as error:
            if error.code == "request.unknown":  # its call was decided a moment ago
                raise self._ended(request.request_id) from error
            raise
        if not is_stored:  # others have decided it a moment ago
            status = self._stored_status(request)
            raise RequestEndedError(self._full_status(request, status))
        return answer

    def _verified(self, request: ApprovalRequest, envelope: Envelope) -> Answer:
        """Return an answer to a request that waits, if the answer counts; raises as ``vouch``."""
        self._require_stored(request)
        answer = self._roster.verify(envelope, request, at=seconds(self._clock()))
        require_counts(request, answer, self._roster)
        refused = self._store.refusal(request) if answer.approval.verdict == "approve" else None
        if refused is not None:  # the agent would go on at once, and its call would be denied
            code, reason = refused
            message = f"nobody can approve this call now: {reason}. The request waits on"
            raise ApprovalError(message, code=code)
        return answer

    def loads(self, data: bytes) -> tuple[ApprovalRequest, Envelope]:
        """Read an answer from a file's bytes, and find its request; raises as ``accept``."""
        envelope = Envelope.parse(canonical.loads(data))
        return self.find(read_answer(envelope).request_id), envelope

    def wait(self, request: ApprovalRequest, *, timeout: timedelta | float) -> bool:
        """Wait until a request is approved, rejected or expired, and return True.

        Returns False where none of them happens within ``timeout`` (seconds, or a ``timedelta``).
        """
        pauses = self._pauses(timeout)
        while not self._is_over(request):
            pause = next(pauses, None)
            if pause is None:
                return False
            time.sleep(pause)
        return True

    async def await_(self, request: ApprovalRequest, *, timeout: timedelta | float) -> bool:  # noqa: ASYNC109
        """Wait as ``wait`` does, without blocking the event loop."""
        import asyncio  # noqa: PLC0415  a program without an event loop does without it

        pauses = self._pauses(timeout)
        while not await asyncio.to_thread(self._is_over, request):
            pause = next(pauses, None)
            if pause is None:
                return False
            await asyncio.sleep(pause)
        return True

    def _pauses(self, timeout: timedelta | float) -> Iterator[float]:
        """Yield the seconds until the next poll, as long as ``timeout`` is not over."""
        end, pause = time.monotonic() + _in_seconds(timeout), POLL_INTERVAL
        while (left := end - time.monotonic()) > 0:
            yield min(pause, left)
            pause = min(2 * pause, self._longest_pause)

    def _is_over(self, request: ApprovalRequest) -> bool:
        if seconds(self._clock()) < request.expires_at:
            return self._is_decided(request)
        self._end_expired()
        return True

    def _is_decided(self, request: ApprovalRequest) -> bool:
        return self._key(request) is None or self.missing(request) is None

    def _key(self, request: ApprovalRequest) -> str | None:
        """Return the key of a request in the store, None if the request is not there.

        The keys are cached, so that a poll reads one request and not all.
        """
        request_id = request.request_id
        if request_id not in self._keys:
            self._keys.update((one.request_id, key) for key, one in self._store.pending())
        key = self._keys.get(request_id)
        stored = self._store.read(key) if key is not None else None
        if stored is None or stored.altered or stored.request != request:
            return None
        return key

    def _require_unaltered(self, request_id: str) -> None:
        altered = [one for one in self.altered() if one.startswith(request_id)]
        if altered and request_id:
            message = (
                f"the request {altered[0]} was changed in the state directory, and differs from "
                "the request in the log: it is not shown, and nobody can answer it. The next "
                "attempt of the call is refused, the attempt after that asks for a new approval. "
                "Run agentguard audit verify, and find out who can write in the state"
            )
            raise ApprovalError(message, code="request.altered")

    def _sign(
        self, request: ApprovalRequest, verdict: Verdict, signer: Signer, note: str
    ) -> Answer:
        principal = self.approver(signer.public_key).principal
        return self.accept(request, self._answer(request, verdict, principal, note, signer))

    def _answer(
        self,
        request: ApprovalRequest,
        verdict: Verdict,
        principal: str,
        note: str,
        signer: Signer | None,
        roles: tuple[str, ...] = (),
    ) -> Envelope:
        return seal_answer(
            request,
            verdict,
            approver=principal,
            approval_id=os.urandom(16).hex(),
            at=max(seconds(self._clock()), request.requested_at),
            note=note,
            roles=roles,
            signer=signer,
        )


def _changes(status: RequestStatus, verdict: Verdict) -> bool:
    """Whether one answer more changes what becomes of a request."""
    return status.state == "waiting" or (status.state == "approved" and verdict == "reject")


def _in_seconds(timeout: timedelta | float) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def _require_id(request_id: object) -> None:
    if not isinstance(request_id, str):
        given = type(request_id).__name__
        message = f"the id of a request is a text, and no {given}: give request.request_id"
        raise ApprovalError(message, code="request.unknown")
