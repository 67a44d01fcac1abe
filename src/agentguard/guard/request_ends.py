"""The ends of requests for approvals: put on record once, and told to the application.

A request that nobody has used ends when its time is over, or when the program withdraws it. The
guard notices an end when a call asks for an approval, when a call is made again, when somebody
looks into the inbox, and in a thread of its own where the application wants to be told
(``Runtime``).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer, Roster
from agentguard.approvals.status import RequestEnd
from agentguard.approvals.store import StoredRequest
from agentguard.audit.entry import Record
from agentguard.audit.kinds.requests import RequestEndEntry
from agentguard.audit.log import AuditLog
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError, EncodeError
from agentguard.flow.ports import Clock, tell
from agentguard.guard.callbacks import Callbacks
from agentguard.identity.trust import seconds
from agentguard.signing.dsse import Envelope
from agentguard.store.approvals import LoggedApprovals

_LOGGER = logging.getLogger("agentguard")

LOOK_EVERY: Final = 5.0
"""The most seconds between two looks: another process may have put a request into the store."""


class RequestEnds:
    """Puts the ends of requests into ``log``, and calls the functions of the application.

    ``lead`` is the number of seconds before a request's end at which ``on_expiring`` is called; of
    a request that lives less than twice as long, half of its time. The methods may be called from
    any thread.
    """

    def __init__(
        self, log: AuditLog, roster: Roster, clock: Clock, callbacks: Callbacks, lead: int
    ) -> None:
        self._log = log
        self._roster = roster
        self._clock = clock
        self._callbacks = callbacks
        self._lead = lead
        self._expired: deque[ApprovalRequest] = deque()
        self._failure = ""

    def record(self, stored: StoredRequest, within: Callable[[Any], None] | None = None) -> None:
        """Append the end of a request to the log (``approvals.store.Recorder``)."""
        request, now = stored.request, self._now()
        end: RequestEnd = "expired" if seconds(now) >= request.expires_at else "withdrawn"
        answers = self._valid_answers(stored, seconds(now))
        try:
            record = self._record(request, end, answers, now)
        except EncodeError:  # more answers than an entry can hold
            record = self._record(request, end, (), now)
        self._log.append(record, within=within)
        if end == "expired":
            self._expired.append(request)

    def _record(
        self, request: ApprovalRequest, end: RequestEnd, answers: Sequence[Envelope], now: datetime
    ) -> Record:
        return RequestEndEntry.new(request, end, answers, self._roster.sha256, at=timestamp(now))

    def _valid_answers(self, stored: StoredRequest, at: int) -> list[Envelope]:
        request = stored.request
        valid: dict[str, Answer] = {}
        for envelope in stored.answers:
            with suppress(AgentguardError):
                answer = self._roster.verify(envelope, request, at=min(at, request.expires_at - 1))
                valid.setdefault(answer.approval.approval_id, answer)
        ordered = sorted(valid.values(), key=lambda one: one.approval.not_before)
        return [one.envelope for one in ordered]

    def look(self, store: LoggedApprovals) -> float:
        """End what is over, and tell the application; return the seconds until the next look.

        Raises nothing: what can't be put on record stays in the store until a later look.
        """
        try:
            store.expire(seconds(self._now()))
            self._tell_expired()
            pause = self._tell_expiring(store) if self._callbacks.hears_of_ends else LOOK_EVERY
        except Exception as error:  # noqa: BLE001  store and log are ports: a later look tries again
            problem = f"{type(error).__name__}: {error}"
            if problem != self._failure:
                _LOGGER.warning("requests whose time is over can't be ended yet: %s", problem)
            self._failure = problem
            return LOOK_EVERY
        self._failure = ""
        return pause

    def _tell_expired(self) -> None:
        with suppress(IndexError):  # another thread may tell of the last one
            while True:
                request = self._expired.popleft()
                if self._callbacks.on_expired is not None:
                    tell("on_expired", self._callbacks.on_expired, request)

    def _tell_expiring(self, store: LoggedApprovals) -> float:
        """Call ``on_expiring`` once for each request whose end is near."""
        pause = LOOK_EVERY
        for _key, request in store.pending():
            now = self._now().timestamp()
            lead = min(self._lead, (request.expires_at - request.requested_at) / 2)
            left = request.expires_at - now
            pause = min(pause, left - lead if left > lead else max(left, 0))
            if 0 < left <= lead and self._callbacks.on_expiring and store.announce(request):
                tell("on_expiring", self._callbacks.on_expiring, request)
        return pause

    def _now(self) -> datetime:
        return max(self._clock(), self._log.last_at).astimezone(UTC)
