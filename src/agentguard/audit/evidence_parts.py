"""The parts of evidence files, each verified once for all files that hold the same part.

The files of one log share most of their entries: keys, credentials, configurations and policies.
Files that were made at one time also share the checkpoint, and the proofs of these entries. A part
is remembered by all of its bytes, and only once it holds: a part that differs in one byte is
verified itself. ``evidence.py`` checks the parts of a file against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar, TypeVarTuple

from agentguard.approvals.roster import Roster
from agentguard.audit import inclusion
from agentguard.audit.entry import Signed, parse_time
from agentguard.audit.evidence_file import LoggedEntry, logged_entry
from agentguard.audit.inclusion import ProvenEntry, VerifiedCheckpoint
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import ConfigEntry, RosterEntry
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.tlog_proof import TlogProof
from agentguard.delegation.chain import Chain
from agentguard.identity.trust import TrustDocument
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey

_MOST: Final = 128
"""The number of parts of each kind that are remembered: the newest ones."""

_LONGEST: Final = 16 * 1024
"""The longest part that is remembered, in bytes: decoded, it takes up to thirty times as much."""

Parts = TypeVarTuple("Parts")
T = TypeVar("T")


class VerifiedParts:
    """Reads and verifies parts of evidence files under the keys of ``trust``.

    Each method raises ``DecodeError`` or ``VerificationError`` for a part that does not hold.
    """

    def __init__(self, trust: TrustDocument) -> None:
        self.trust = trust
        self._logged_entry = _remembering(logged_entry)
        self._checkpoint = _remembering(self._verify_checkpoint)
        self._proven = _remembering(inclusion.prove)
        self._issued = _remembering(self._verify_issued)
        self._config = _remembering(_verify_config)
        self._chain = _remembering(self._verify_chain)
        self._roster = _remembering(self._verify_roster)
        self._signature = _remembering(_verify_signature)

    def logged_entry(self, entry: str, proof: str) -> LoggedEntry:
        """Read an entry and its proof of inclusion."""
        return self._logged_entry(entry, proof)

    def entries(self, items: Sequence[LoggedEntry]) -> tuple[VerifiedCheckpoint, list[ProvenEntry]]:
        """Verify the proofs of a file's entries, as ``inclusion.verify_entries`` does."""
        return inclusion.verify_entries(items, self._checkpoint, self._proven)

    def issued(self, proven: ProvenEntry) -> PublicKey:
        """Verify a statement of the issuer; return the issuer's key."""
        return self._issued(proven.body)

    def config(self, proven: ProvenEntry) -> tuple[str, str]:
        """Verify the digest of a configuration; return the digest and the policy's mode."""
        return self._config(proven.body)

    def chain(self, proven: ProvenEntry) -> Chain:
        """Verify a chain of delegation as of the time of its entry."""
        return self._chain(proven.body)

    def roster(self, proven: ProvenEntry) -> Roster:
        """Verify a roster of approvers, but for its signature (``issued``)."""
        return self._roster(proven.body)

    def check_signature(self, envelope: Envelope, key: PublicKey) -> None:
        """Check that ``key`` has signed an envelope, and each joint signature once."""
        signature, message = envelope.signed(key)
        self._signature(signature, message, key)

    def _verify_checkpoint(self, note: bytes) -> VerifiedCheckpoint:
        return inclusion.verify_checkpoint(note, self.trust)

    def _verify_issued(self, body: bytes) -> PublicKey:
        entry = parse_entry(body, Signed)
        return entry.verify(self.trust, parse_time(entry.at))

    def _verify_chain(self, body: bytes) -> Chain:
        entry = parse_entry(body, DelegationEntry)
        return entry.verified(self.trust, parse_time(entry.at))

    def _verify_roster(self, body: bytes) -> Roster:
        return parse_entry(body, RosterEntry).roster(self.trust)


def _verify_config(body: bytes) -> tuple[str, str]:
    entry = parse_entry(body, ConfigEntry)
    entry.require_digest()
    return entry.config_sha256, entry.mode


def _verify_signature(signature: bytes, message: bytes, key: PublicKey) -> None:
    key.verify(signature, message)


def _remembering(function: Callable[[*Parts], T]) -> Callable[[*Parts], T]:
    """Return ``function``, with a memory of the results for the newest parts that are short."""
    memory = lru_cache(_MOST)(function)

    def call(*parts: *Parts) -> T:
        length = sum(map(_length, parts))
        return memory(*parts) if length <= _LONGEST else function(*parts)

    return call


def _length(part: object) -> int:
    """Return the bytes of a part; the note in a proof may have any number of signatures."""
    if isinstance(part, TlogProof):
        return len(part.note)
    return len(part) if isinstance(part, str | bytes) else 0
