"""``State``: what entries change in the map under the log's head, which decides later calls.

Who may act no more (revoked names, a freeze, log-outs, surrendered delegations), which calls run no
second time, how many calls are left, and what became of requests for approvals.

A commit makes the changes of its entries with the entries (``Entry.change``), and ``audit verify``
makes all of them again from the entries alone. So a change depends on entries and on earlier
changes, and never on a clock, a trust document or the process that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal, NamedTuple

from agentguard.audit.map import EMPTY_ROOT, Cache, Map, Overlay, key
from agentguard.call.reason_codes import CODES
from agentguard.delegation.grant import Grant
from agentguard.errors import ApprovalError, CallError, DelegationError, VerificationError
from agentguard.identity import login
from agentguard.identity.login import Ended, LogOut
from agentguard.signing import canonical

LIMITS: Final = 1
"""By the digest of a chain, its hops with a limit: digest, limit, issue and expiry of each."""

CALLS: Final = 2
"""By the digest of the chain up to a hop with a limit, how many calls were made under the hop."""

REQUESTS: Final = 3
"""By its id, a request for an approval: what people see of it, and what became of it."""

VOID: Final = 4
"""Under one name, when an adoption last made limits void, in seconds since the epoch."""

REFUSED: Final = 5
"""By its name, what an administrator has revoked, for ever; or a hop that its holder gave up."""

FREEZE: Final = 6
"""Under one name, the number of the newest freeze or thaw, and whether all calls are frozen."""

LOG_OUTS: Final = 7
"""By a key of ``LogOut.keys``, up to when its log-ins have ended."""

ERASED: Final = 8
"""By the id of its invocation, a call whose data were erased: no result is handed out again."""

RUN_ONCE: Final = 9
"""By its name in the journal, a call that may run no second time."""

UNSETTLED: Final = 10
"""By the digest of its invocation, a call without an outcome: its name in the journal, its id."""

DENYING: Final = (REFUSED, FREEZE, LOG_OUTS)
"""The kinds that say who may act no more."""

_SURRENDERED: Final = b"surrendered"
_REVOKED: Final = b"revoked"

_FREEZE_AHEAD: Final = 24 * 3600
"""Seconds by which the number of a freeze may be ahead of its time: it is of milliseconds."""

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


class RunOnce(NamedTuple):
    """A journalled call: the id of its invocation, and its state.

    It has ``begun``, and has no outcome yet; or by its outcome it ``ran``, or it is ``unknown``
    whether it did; or an administrator has ``resolved`` that it ran.
    """

    invocation_id: str
    state: Literal["begun", "ran", "unknown", "resolved"]


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
        lost too, and be recorded again; so its own time counts. Revocations may be lost as well:
        all calls are frozen, until an administrator has looked after them.
        """
        # above the number of a lost thaw of the same second
        self.freeze(max(self.next_freeze, (at + 1) * 1000), at, frozen=True)
        self._put(key(VOID, ""), at.to_bytes(_NUMBER), _NEVER)
        for one, value in list(self._values.items(REQUESTS)):
            request = LoggedRequest.read(value)
            if request is not None and request.state == "waiting":
                voided = canonical.dumps([*request._replace(state="void")])
                self._put(one, voided, _end_of(value))

    # --- who may act no more ---------------------------------------------------------------------

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason with which a bearer of these names is refused, or None.

        A freeze is named last: what else refuses outlasts it.
        """
        for name in sorted(names):
            log_in = login.key_of(name)
            if log_in is not None:
                ended = self._log_out(log_in)
                if ended is not None and login.is_ended(name, ended):
                    reason = "the user has logged out since: a new log-in lets the agent act again"
                    return "delegation.logged_out", reason
                continue
            refused = self._get(key(REFUSED, name))
            if refused == _SURRENDERED:
                reason = "the agent, or one before it in the chain, has given the delegation up"
                return "delegation.surrendered", reason
            if refused is not None:
                reason = f"{name} was revoked: every call that relies on {name} is denied"
                return "delegation.revoked", reason
        if self.is_frozen:
            return "domain.frozen", f"all calls are frozen: {CODES['domain.frozen'].remedy}"
        return None

    def revoke(self, name: str) -> None:
        """Refuse whoever relies on a name, for ever."""
        self._put(key(REFUSED, name), _REVOKED, _NEVER)

    def surrender(self, jti: str, expires_at: int) -> None:
        """Let nobody act under a hop, which ends by itself at a time."""
        if not self.is_refused(jti):
            self._put(key(REFUSED, jti), _SURRENDERED, expires_at + EXPIRY_SLACK)

    def is_refused(self, name: str) -> bool:
        """Whether a name was revoked, or a hop was given up."""
        return self._get(key(REFUSED, name)) is not None

    @property
    def is_frozen(self) -> bool:
        """Whether all calls are denied."""
        return self._freeze()[1]

    @property
    def next_freeze(self) -> int:
        """The least number that the next freeze or thaw may have."""
        return self._freeze()[0] + 1

    def freeze(self, number: int, at: int, *, frozen: bool) -> None:
        """Deny all calls, or no more, from ``at`` on (seconds since the epoch).

        Raises ``VerificationError`` for a number that was passed, so that nobody repeats an old
        thaw; and for one that is far ahead of the time, after which none would be left.
        """
        first = self.next_freeze
        last = max(first, (at + _FREEZE_AHEAD) * 1000)
        if not first <= number <= last:
            message = f"the next freeze or thaw has a number from {first} to {last}"
            raise VerificationError(message, code="statement.mismatch")
        self._put(key(FREEZE, ""), canonical.dumps([number, frozen]), _NEVER)

    def _freeze(self) -> tuple[int, bool]:
        value = self._get(key(FREEZE, ""))
        return (0, False) if value is None else json.loads(value)

    def log_out(self, logout: LogOut, received_at: int) -> None:
        """End the log-ins of a log-out that was received at a time."""
        for one in logout.keys:
            ended = Ended(logout.issued_at, received_at).joined(self._log_out(one))
            ends = ended.received_at + login.KEPT
            self._put(key(LOG_OUTS, one), canonical.dumps([*ended]), ends)

    def has_ended(self, logout: LogOut) -> bool:
        """Whether all log-ins have ended that a log-out ends."""
        known = map(self._log_out, logout.keys)
        return all(one is not None and one.issued_at >= logout.issued_at for one in known)

    def _log_out(self, one: str) -> Ended | None:
        value = self._get(key(LOG_OUTS, one))
        return None if value is None else Ended(*json.loads(value))

    # --- calls that run once ---------------------------------------------------------------------

    def run_once(self, name: str) -> RunOnce | None:
        """Return the call of this name in the journal; None for a call that may run."""
        value = self._get(key(RUN_ONCE, name))
        return None if value is None else RunOnce(*json.loads(value))

    def begin(self, name: str, invocation_id: str, invocation_sha256: str) -> None:
        """Let a journalled call run once.

        Raises ``CallError`` (``journal.in_doubt``) where another attempt has begun since the call
        looked into the journal.
        """
        if self.run_once(name) is not None:
            message = (
                "another attempt of this very call has begun: look for the attempt's outcome with "
                "agentguard audit list"
            )
            raise CallError(message, code="journal.in_doubt")
        self._put_call(name, RunOnce(invocation_id, "begun"))
        unsettled = canonical.dumps([name, invocation_id])
        self._put(key(UNSETTLED, invocation_sha256), unsettled, _NEVER)

    def settle(self, invocation_sha256: str, state: Literal["ran", "unknown"] | None) -> None:
        """Settle a call that has begun, by its outcome: its new state, or None: it may run again.

        What an administrator has resolved to have run does not run again for it.
        """
        call = self._resolve(invocation_sha256, state, keeps="resolved")
        if call:
            self._values.put(key(UNSETTLED, invocation_sha256), None)

    def resolve(self, invocation_sha256: str, *, ran: bool) -> None:
        """Say of a call without an outcome that it ran, or may run again.

        The call stays without an outcome: a later resolution counts, since the key that has signed
        this one may turn out to be stolen.
        """
        self._resolve(invocation_sha256, "resolved" if ran else None)

    def _resolve(
        self,
        invocation_sha256: str,
        state: Literal["ran", "unknown", "resolved"] | None,
        keeps: str | None = None,
    ) -> bool:
        """Change the state of a call without an outcome, unless another attempt has begun since."""
        value = self._get(key(UNSETTLED, invocation_sha256))
        if value is None:
            return False
        name, invocation_id = json.loads(value)
        call = self.run_once(name)
        is_own = call is None or call.invocation_id == invocation_id
        if is_own and state is not None:
            self._put_call(name, RunOnce(invocation_id, state))
        elif is_own and call is not None and call.state != keeps:
            self._values.put(key(RUN_ONCE, name), None)
        return True

    def _put_call(self, name: str, call: RunOnce) -> None:
        self._put(key(RUN_ONCE, name), canonical.dumps([*call]), _NEVER)

    def erase(self, invocation_id: str) -> None:
        """Let the result of a call not be handed out again."""
        self._put(key(ERASED, invocation_id), b"", _NEVER)

    def is_erased(self, invocation_id: str) -> bool:
        """Whether the data of a call were erased."""
        return self._get(key(ERASED, invocation_id)) is not None

    # --- the end of keys --------------------------------------------------------------------------

    def end(self, keys: Iterable[bytes], at: int) -> None:
        """Take keys away that have ended; raises ``VerificationError`` for one that has not."""
        for one in keys:
            if not self.is_over(one, at):
                message = "it ends what has not ended, or is not there"
                raise VerificationError(message, code="statement.mismatch")
            self._values.put(one, None)

    def is_over(self, key: bytes, at: int) -> bool:
        """Whether a key is there, and means nothing any more (seconds since the epoch)."""
        value = self._values.get(key)
        return value is not None and _end_of(value) <= at

    def _get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        return None if value is None else value[_NUMBER:]

    def _put_request(self, request_id: str, request: LoggedRequest, ends: int) -> None:
        self._put(key(REQUESTS, request_id), canonical.dumps([*request]), ends)

    def _put(self, key: bytes, value: bytes, ends: int) -> None:
        before = self._values.get(key)
        is_known = ends == _NEVER or (before is not None and _end_of(before) == ends)
        self._values.put(key, ends.to_bytes(_NUMBER) + value, ends=None if is_known else ends)


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
