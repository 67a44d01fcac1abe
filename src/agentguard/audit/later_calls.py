"""``LaterCalls``: builds ``Restrictions`` from the entries of the log, entry by entry.

The caller first verifies that the log's key has signed the entries (``store/ledger.py``); the
builder looks at no checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from agentguard.audit.entry import KINDS, Entry
from agentguard.audit.journal_names import NAME_SIZE
from agentguard.audit.kinds import parse_entry
from agentguard.audit.restrictions import (
    Restrictions,
    UnsettledCall,
)
from agentguard.errors import AgentguardError
from agentguard.identity.login import LogOut
from agentguard.identity.trust import TrustDocument, TrustedKey

_AT: Final = re.compile(rb'"at":"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z)"')
_AUTHORIZATION: Final = b'"kind":"call"'
_OUTCOME: Final = b'"kind":"outcome"'
_JOURNAL: Final = b'"journal":"'


class LaterCalls:
    """What entries change for later calls; ``restrictions`` is the result so far.

    Each kind says what it changes (``Entry.apply``), with the verbs here. ``trust`` has the keys
    that count; for what denies calls, ``trust_for_denials`` also has those that were compromised.
    """

    def __init__(self, start: Restrictions, trust: TrustDocument) -> None:
        self._base = start
        self.trust = trust
        # for a denial every key is valid, also a key that was compromised since
        self.trust_for_denials = replace(
            trust,
            keys=tuple(TrustedKey(trusted.use, trusted.key, 0) for trusted in trust.keys),
        )
        self._newest = start.newest.encode()
        self._unsettled = dict(start.unsettled)
        self._erased = set(start.erased)
        self._new_names: set[bytes] = set()
        self.read = start.read
        """How far the log has been read, which the caller sets."""

        self._malformed = start.malformed
        self._changing = tuple(
            f'"kind":"{kind}"'.encode()
            for kind, form in KINDS.items()
            if form.apply is not Entry.apply and kind not in ("call", "outcome")
        )

    def add(self, body: bytes) -> None:
        """Add one entry.

        An administrator's statement with an invalid signature is ignored; ``audit verify`` reports
        it. A malformed entry, which only a holder of the log's key can have written, is ignored and
        counted.
        """
        at = _AT.search(body)
        if at is not None:
            self._newest = max(self._newest, at[1])
        if not self._matters(body):
            return
        try:
            parse_entry(body).apply(self)
        except AgentguardError:
            self._malformed += 1

    def _matters(self, body: bytes) -> bool:
        """Return whether an entry may change the restrictions; most entries are never parsed."""
        if _AUTHORIZATION in body:
            return _JOURNAL in body
        if _OUTCOME in body:
            return bool(self._unsettled)
        return any(kind in body for kind in self._changing)

    # --- what an entry changes for later calls ---------------------------------------------------

    def revoke(self, name: str) -> None:
        """Whoever relies on the name is denied."""
        self._base = self._base.with_revoked(name)

    def freeze(self, sequence: int, *, frozen: bool) -> None:
        """All calls are denied, or are not any more; the highest ``sequence`` counts."""
        self._base = self._base.with_freeze(sequence, frozen=frozen)

    def log_out(self, logout: LogOut, at: int) -> None:
        """Nobody acts for the log-ins; the log-out was received ``at`` (epoch seconds)."""
        self._base = self._base.with_logout(logout, at)

    def surrender(self, jti: str, expires_at: int) -> None:
        """Nobody acts under the hop, which ends by itself at ``expires_at``."""
        self._base = self._base.with_surrendered(jti, expires_at)

    def erase(self, invocation_id: str) -> None:
        """The result of the call is not handed out again."""
        self._erased.add(invocation_id)

    def resolve(self, invocation_sha256: str, *, ran: bool) -> None:
        """A call in doubt is settled: it runs no second time if it ran, and else may run."""
        call = self._unsettled.pop(invocation_sha256, None)
        if ran and call is not None:
            self._new_names.add(bytes.fromhex(call.name))

    def call(self, invocation_sha256: str, invocation_id: str, name: str | None) -> None:
        """A call may run, with that name in the journal."""
        if name is not None:
            self._unsettled[invocation_sha256] = UnsettledCall(invocation_id, name[: 2 * NAME_SIZE])

    def end(self, invocation_sha256: str, *, has_run: bool) -> None:
        """A call has ended; one that has run, or may have, runs no second time."""
        call = self._unsettled.pop(invocation_sha256, None)
        if call is not None and has_run:
            self._new_names.add(bytes.fromhex(call.name))

    # --- what follows ----------------------------------------------------------------------------

    @property
    def restrictions(self) -> Restrictions:
        """The restrictions so far, without what has expired for more than a day."""
        newest = self._newest.decode()
        names = self._base.names
        return self._base._replace(
            newest=newest,
            unsettled=dict(self._unsettled),
            erased=frozenset(self._erased),
            names=names._replace(added=names.added | self._new_names) if self._new_names else names,
            read=self.read,
            malformed=self._malformed,
        ).without_ended()
