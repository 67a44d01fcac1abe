"""``State``: what entries change in the map under the log's head, which decides later calls.

A commit makes the changes of its entries with the entries (``Entry.change``), and ``audit verify``
makes all of them again from the entries alone. So a change depends on entries and on earlier
changes, and never on a clock, a trust document or the process that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from agentguard.audit.map import EMPTY_ROOT, Cache, Map, Overlay, key
from agentguard.delegation.grant import Grant
from agentguard.errors import ApprovalError, DelegationError, VerificationError
from agentguard.signing import canonical

LIMITS: Final = 1
"""By the digest of a chain, its hops with a limit: digest, limit, issue and expiry of each."""

CALLS: Final = 2
"""By the digest of the chain up to a hop with a limit, how many calls were made under the hop."""

REQUESTS: Final = 3
"""By its id, a request for an approval: what people see of it, and what became of it."""

VOID: Final = 4
"""Under one name, when an adoption last made limits void, in seconds since the epoch."""

REQUEST_KEPT: Final = 30 * 24 * 3600
"""Seconds for which an expired request stays: a guard may put its end on record weeks later."""

EXPIRY_SLACK: Final = 24 * 3600
"""Seconds for which an ended key stays, because a process may have a slow clock."""

_NUMBER: Final = 8
"""The bytes of a number."""

_NEVER: Final = 2**53
"""The end of what stays."""


class LoggedRequest(NamedTuple):
    """A request, by the log: the digest of what people see, and its state.

    A request is ``waiting``; or a call has ``used`` it, or was ``rejected`` by its answers; or it
    has ``expired`` or was ``withdrawn``; or an adoption has made it ``void``.
    """

    displayed_sha256: str
    state: str

    @classmethod
    def read(cls, value: bytes | None) -> LoggedRequest | None:
        """Read a value of the kind ``REQUESTS``; None for none."""
        return None if value is None else cls(*json.loads(value[_NUMBER:]))


class State:
    """What entries change, in the words of the entries.

    Each value in the map begins with the time at which it ends (seconds since the epoch).
    """

    def __init__(self, values: Overlay) -> None:
        self._values = values

    def limit(self, hops: Sequence[tuple[str, Grant]]) -> None:
        """Let calls be made under a chain of delegation, as many as its hops allow.

        Each hop comes with the digest of the chain up to it, by which its calls are counted: an
        agent that delegates chooses the ``jti`` of its hop, and could choose that of another one.
        """
        limits = [
            [digest, hop.max_calls, hop.issued_at, hop.expires_at]
            for digest, hop in hops
            if hop.max_calls is not None
        ]
        ends = max(hop.expires_at for _digest, hop in hops) + EXPIRY_SLACK
        self._put(key(LIMITS, hops[-1][0]), canonical.dumps(limits), ends)

    def count(self, chain_sha256: str) -> None:
        """Count a call under each limit of a chain.

        Raises ``DelegationError``: ``calls.exceeded`` where one is used up or void, and
        ``delegation.unknown`` for a chain that is not in the log.
        """
        limits = self._get(key(LIMITS, chain_sha256))
        if limits is None:
            message = "the chain of delegation is not in the log"
            raise DelegationError(message, code="delegation.unknown")
        counted: list[tuple[bytes, int, int]] = []
        for digest, most, issued_at, expires_at in json.loads(limits):
            void = int.from_bytes(self._get(key(VOID, "")) or b"")
            calls = int.from_bytes(self._get(key(CALLS, digest)) or b"")
            if calls >= most or issued_at <= void:
                how = (
                    "all of them are made" if calls >= most else "an adoption made the others void"
                )
                message = f"the delegation allows {most} calls, and {how}"
                raise DelegationError(message, code="calls.exceeded")
            counted.append((key(CALLS, digest), calls + 1, expires_at))
        for one, calls, expires_at in counted:
            self._put(one, calls.to_bytes(_NUMBER), expires_at + EXPIRY_SLACK)

    def ask(self, request_id: str, displayed_sha256: str, expires_at: int) -> None:
        """Let a request wait for people; raises ``ApprovalError`` for one that is known."""
        if self.request(request_id) is not None:
            raise ApprovalError(f"the request {request_id} is in the log", code="request.exists")
        waiting = LoggedRequest(displayed_sha256, "waiting")
        self._put_request(request_id, waiting, expires_at + REQUEST_KEPT)

    def close(self, request_id: str, state: str) -> None:
        """End a request that waits.

        Raises ``ApprovalError``: ``approval.consumed`` where it is to be ``used``, and else
        ``request.unknown``, for one that does not wait.
        """
        request, value = self.request(request_id), self._values.get(key(REQUESTS, request_id))
        if request is None or value is None or request.state != "waiting":
            how = "is not in the log" if request is None else f"is {request.state} already"
            message = f"the request {request_id} {how}: one approval lets one call run once"
            code = "approval.consumed" if state == "used" else "request.unknown"
            raise ApprovalError(message, code=code)
        self._put_request(request_id, request._replace(state=state), _end_of(value))

    def request(self, request_id: str) -> LoggedRequest | None:
        """Return a request; None for one that the log does not have."""
        return LoggedRequest.read(self._values.get(key(REQUESTS, request_id)))

    def void(self, at: int) -> None:
        """Let no approval so far, and no limit of a hop issued until ``at``, let a call run.

        Entries are lost, and with them perhaps the uses: nobody knows what is left. A hop may be
        lost too, and be recorded again; so its own time counts.
        """
        self._put(key(VOID, ""), at.to_bytes(_NUMBER), _NEVER)
        for one, value in list(self._values.items(REQUESTS)):
            request = LoggedRequest.read(value)
            if request is not None and request.state == "waiting":
                voided = canonical.dumps([*request._replace(state="void")])
                self._put(one, voided, _end_of(value))

    def end(self, keys: Iterable[bytes], at: int) -> None:
        """Take keys away that have ended; raises ``VerificationError`` for one that has not."""
        for one in keys:
            if not self.has_ended(one, at):
                message = "it ends what has not ended, or is not there"
                raise VerificationError(message, code="statement.mismatch")
            self._values.put(one, None)

    def has_ended(self, key: bytes, at: int) -> bool:
        """Whether a key is there, and means nothing any more (seconds since the epoch)."""
        value = self._values.get(key)
        return value is not None and _end_of(value) <= at

    def _get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        return None if value is None else value[_NUMBER:]

    def _put_request(self, request_id: str, request: LoggedRequest, ends: int) -> None:
        self._put(key(REQUESTS, request_id), canonical.dumps([*request]), ends)

    def _put(self, key: bytes, value: bytes, ends: int) -> None:
        self._values.put(key, ends.to_bytes(_NUMBER) + value, ends=ends)


def _end_of(value: bytes) -> int:
    return int.from_bytes(value[:_NUMBER])


class Remade:
    """The map, made again from entries alone."""

    def __init__(self) -> None:
        self._map = Map(EMPTY_ROOT, lambda _addresses: {}, Cache())

    def apply(self, change: Callable[[State], object]) -> None:
        """Make the changes of an entry (``Entry.change``): all, or none where it raises."""
        changes = Overlay(self._map)
        change(State(changes))
        for one, value in changes.puts.items():
            self._map.put(one, value)

    def root(self) -> bytes:
        """Return the root, once, after all changes."""
        return self._map.seal()[0]
