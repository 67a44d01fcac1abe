"""The restrictions: how the entries of the log restrict later calls.

``Restrictions`` holds the revocations, the freeze, the calls that must not run twice, the log-outs
of users, the delegations that were given up, and the newest time.
``later_calls.py`` builds the restrictions from entries; ``storage/restrictions_file.py`` stores
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.audit.entry import BEGINNING, parse_time
from agentguard.audit.journal_names import NAME_SIZE, JournalNames
from agentguard.audit.state import EXPIRY_SLACK
from agentguard.call.reason_codes import CODES
from agentguard.identity import login
from agentguard.identity.login import Ended, LogOut

LOGGED_OUT: Final = "the user has logged out since: a new log-in lets the agent act again"
"""The reason of each denial because of a log-out."""

SURRENDERED: Final = "the agent, or one before it in the chain, has given the delegation up"
"""The reason of each denial because of a surrender."""

_LAST_SEQUENCE: Final = 2**48
"""The highest ``sequence`` of a freeze that counts.

A sequence is at least the time in milliseconds since 1970; this one is of the year 10889.
"""


class ReadPlace(NamedTuple):
    """How far the log has been read: the number of entries, and the peaks of their tree."""

    size: int = 0
    peaks: bytes = b""


class UnsettledCall(NamedTuple):
    """A journalled call that has no outcome yet; ``name`` is the first bytes of its name (hex)."""

    invocation_id: str
    name: str


class Restrictions(NamedTuple):
    """How the entries read so far restrict later calls.

    ``read`` and ``malformed`` restrict no call: they say which entries the restrictions come from.

    - ``revoked``: the names that an administrator has revoked.
    - ``logouts``: which log-ins of users have ended, by the keys of ``LogOut.keys``.
    - ``surrendered``: the hops that their holders have given up, by id, each with its end.
    - ``sequence``: the number of the newest freeze or thaw.
    - ``frozen``: whether every call is denied until a thaw.
    - ``newest``: the time of the newest entry, in the form of ``BEGINNING``; a guard that opens
      later writes no older entry.
    - ``unsettled``: calls by the digest of their invocation.
    - ``erased``: the ids of the invocations whose data were erased; no result is replayed.
    - ``names``: the names of journalled calls, which must not run twice.
    - ``read``: how far the log was read.
    - ``malformed``: the number of malformed entries.
    """

    revoked: frozenset[str] = frozenset()
    sequence: int = 0
    frozen: bool = False
    newest: str = BEGINNING
    unsettled: Mapping[str, UnsettledCall] = MappingProxyType({})
    erased: frozenset[str] = frozenset()
    names: JournalNames = JournalNames()
    read: ReadPlace = ReadPlace()
    malformed: int = 0
    logouts: Mapping[str, Ended] = MappingProxyType({})
    surrendered: Mapping[str, int] = MappingProxyType({})

    def with_revoked(self, name: str) -> Restrictions:
        """Return restrictions that also revoke ``name``."""
        return self._replace(revoked=self.revoked | {name})

    def with_logout(self, logout: LogOut, received_at: int) -> Restrictions:
        """Return the restrictions after a log-out; ``received_at`` is in seconds of the epoch."""
        ended = Ended(logout.issued_at, received_at)
        return self._replace(logouts=_joined(self.logouts, dict.fromkeys(logout.keys, ended)))

    def with_surrendered(self, jti: str, expires_at: int) -> Restrictions:
        """Return restrictions that end a hop, which ends by itself at ``expires_at``."""
        return self._replace(surrendered={**self.surrendered, jti: expires_at})

    def without_ended(self) -> Restrictions:
        """Return the restrictions without log-outs and surrenders of what has ended by itself."""
        if not self.logouts and not self.surrendered:
            return self
        newest = parse_time(self.newest)
        logouts = {
            key: one for key, one in self.logouts.items() if one.received_at >= newest - login.KEPT
        }
        surrendered = {
            jti: end for jti, end in self.surrendered.items() if end >= newest - EXPIRY_SLACK
        }
        return self._replace(logouts=logouts, surrendered=surrendered)

    def has_ended(self, logout: LogOut) -> bool:
        """Whether a log-out is known that ends all that this log-out ends."""
        known = (self.logouts.get(key) for key in logout.keys)
        return all(one is not None and one.issued_at >= logout.issued_at for one in known)

    def with_freeze(self, sequence: int, *, frozen: bool) -> Restrictions:
        """Return the restrictions after a freeze or thaw; a lower number changes nothing."""
        if sequence <= self.sequence:
            return self
        return self._replace(sequence=sequence, frozen=frozen)

    def joined(self, other: Restrictions) -> Restrictions:
        """Add what denies calls in ``other``; the later time counts."""
        union = self._replace(
            revoked=self.revoked | other.revoked,
            logouts=_joined(self.logouts, other.logouts),
            surrendered={**self.surrendered, **other.surrendered},
            erased=self.erased | other.erased,
            newest=max(self.newest, other.newest),
        )
        return union.with_freeze(other.sequence, frozen=other.frozen).without_ended()

    def with_refusals(self, other: Restrictions) -> Restrictions:
        """Add the revocations, log-outs, surrenders, erasures and freeze.

        Somebody with a stolen key of the log may have signed ``other``: it thaws nothing and sets
        no time. The ``sequence`` of ``other`` counts: a running process may have seen this number,
        so the next freeze needs a higher number. A number above
        ``_LAST_SEQUENCE`` does not count: no administrator can have reached it, and no thaw could
        have a higher number.
        """
        union = self._replace(
            revoked=self.revoked | other.revoked,
            logouts=_joined(self.logouts, other.logouts),
            surrendered={**self.surrendered, **other.surrendered},
            erased=self.erased | other.erased,
        )
        if other.sequence <= self.sequence:
            return union
        sequence = other.sequence if other.sequence <= _LAST_SEQUENCE else self.sequence + 1
        if self.frozen and not other.frozen:
            sequence += 1
        return union._replace(sequence=sequence, frozen=self.frozen or other.frozen)

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and reason for denying calls of these names; None where none applies."""
        if self.frozen:
            return "domain.frozen", f"all calls are frozen: {CODES['domain.frozen'].remedy}"
        if self.logouts and login.any_ended(names, self.logouts):
            return "delegation.logged_out", LOGGED_OUT
        if self.surrendered and not self.surrendered.keys().isdisjoint(names):
            return "delegation.surrendered", SURRENDERED
        if self.revoked.isdisjoint(names):
            return None
        revoked = min(self.revoked & names)
        return (
            "delegation.revoked",
            f"{revoked} was revoked: every call that relies on {revoked} is denied",
        )

    def unsettled_call(self, name: bytes) -> UnsettledCall | None:
        """Return the journalled call of this name that has no outcome; None if there is none."""
        prefix = name[:NAME_SIZE].hex()
        return next((call for call in self.unsettled.values() if call.name == prefix), None)

    @property
    def entries(self) -> int:
        """The number of entries read so far."""
        return self.read.size


def _joined(ones: Mapping[str, Ended], others: Mapping[str, Ended]) -> Mapping[str, Ended]:
    if not others or ones is others:
        return ones
    return {**ones, **{key: one.joined(ones.get(key)) for key, one in others.items()}}
