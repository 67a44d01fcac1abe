"""What a state directory holds beside the log, in memory: for tests, notebooks and one process.

All of it is gone with its process. The log in memory is a store (``store/sqlite.py``).
"""

from __future__ import annotations

import threading
from contextlib import suppress

from agentguard.approvals.answer import read_answer
from agentguard.approvals.request import ApprovalRequest, names_of
from agentguard.approvals.store import Check, Limits, Recorder, StoredRequest
from agentguard.audit.log import AuditLog
from agentguard.errors import ApprovalError, StorageError
from agentguard.signing.dsse import Envelope
from agentguard.storage.approval_files import warn_if_unused


class MemoryApprovals:
    """The ``Approvals`` of a guard in memory; ``log`` has what became of requests."""

    def __init__(self, limits: Limits, log: AuditLog, record: Recorder) -> None:
        self._limits = limits
        self._log = log
        self._record = record
        self._requests: dict[str, StoredRequest] = {}
        self._announced: set[str] = set()
        self._lock = threading.RLock()  # the check of an answer reads the store

    def has(self, key: str) -> bool:
        """Return whether there is a request under the key."""
        return key in self._requests

    def read(self, key: str) -> StoredRequest | None:
        """Return the request, with its answers."""
        return self._requests.get(key)

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Store the request, or return the one that is stored already."""
        with self._lock:
            self.expire(request.requested_at)
            for expired in self._expired(request.requested_at):
                stored = self._requests.pop(expired)
                warn_if_unused(stored.request, stored.answers)
            if key in self._requests:
                return self._requests[key].request
            self._limits.check([stored.request for stored in self._requests.values()], request)
            self._requests[key] = StoredRequest(request, ())
            return request

    def _expired(self, now: int) -> list[str]:
        return [key for key, stored in self._requests.items() if stored.request.expires_at <= now]

    def expire(self, now: int) -> None:
        """Put the end of each request on record whose time is over."""
        with self._lock:
            for key in self._expired(now):
                self._end(self._requests[key])

    def _end(self, stored: StoredRequest) -> bool:
        """Put the end of a request on record that waits; return whether no call has used it."""
        if self._state_of(stored.request) == "waiting":
            with suppress(ApprovalError):  # a call was first
                self._record(stored)
        self._announced.discard(stored.request.request_id)
        return self._state_of(stored.request) in ("expired", "withdrawn")

    def _state_of(self, request: ApprovalRequest) -> str | None:
        logged = self._log.look(lambda state: state.request(request.request_id))
        return None if logged is None else logged.state

    def announce(self, request: ApprovalRequest) -> bool:
        """Mark that people hear of a request's coming end; return whether nobody had before."""
        with self._lock:
            is_there = any(one.request == request for one in self._requests.values())
            is_told = request.request_id in self._announced
            self._announced.add(request.request_id)
            return is_there and not is_told and self._state_of(request) == "waiting"

    def withdraw(self, request: ApprovalRequest) -> bool:
        """End the request, and remove it; return whether no call has used it."""
        with self._lock:
            there = [
                (k, stored) for k, stored in self._requests.items() if stored.request == request
            ]
            stored = there[0][1] if there else StoredRequest(request, ())
            if not self._end(stored):
                return False
            for key, _stored in there:
                del self._requests[key]
            return True

    def remove(self, key: str) -> None:
        """Remove the request, with its answers."""
        with self._lock:
            self._requests.pop(key, None)

    def pending(self) -> list[tuple[str, ApprovalRequest]]:
        """Return ``(key, request)`` of each request, the oldest first."""
        with self._lock:
            return [(key, stored.request) for key, stored in self._requests.items()]

    def altered(self, now: int) -> list[str]:  # noqa: ARG002
        """Return nothing: nobody changes a request in memory."""
        return []

    def refusal(self, request: ApprovalRequest) -> tuple[str, str] | None:
        """Return why the call of a request can't run now, by the log; None where it can."""
        return self._log.refusal(names_of(request))

    def answer(self, request: ApprovalRequest, envelope: Envelope, check: Check = None) -> None:
        """Store an answer; raises ``StorageError`` (``storage.exists``) or ``ApprovalError``.

        Nothing is stored where ``check`` raises, and no other answer is stored after the check.
        """
        with self._lock:
            if check is not None:
                check()
            for key, stored in self._requests.items():
                if stored.request.request_id == request.request_id and (
                    self._state_of(request) == "waiting"
                ):
                    name = read_answer(envelope).approval_id
                    if name in {read_answer(other).approval_id for other in stored.answers}:
                        message = f"the answer {name} is there already"
                        raise StorageError(message, code="storage.exists")
                    self._requests[key] = stored._replace(answers=(*stored.answers, envelope))
                    return
        message = f"the request {request.request_id} does not wait any more"
        raise ApprovalError(message, code="request.unknown")
