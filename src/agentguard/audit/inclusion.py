"""Verifies that a log contains the entries of an evidence file.

Each entry has a proof of inclusion under the file's one checkpoint. The proofs and the checkpoint
are verified here; ``evidence.py`` verifies what the entries say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.evidence_file import LoggedEntry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.tlog_proof import TlogProof
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey


@dataclass(frozen=True, slots=True)
class Place:
    """The index of an entry in the log, and the entry's time (RFC 3339)."""

    index: int
    at: str


class VerifiedCheckpoint(NamedTuple):
    """A file's checkpoint, and the key that has signed it."""

    point: Checkpoint
    key: TrustedKey


class ProvenEntry(NamedTuple):
    """An entry that the log contains, and its bytes; ``at`` is in seconds since the epoch."""

    body: bytes
    entry: Entry
    place: Place
    at: int


def verify_entries(
    items: Sequence[LoggedEntry],
    checkpoint_of: Callable[[bytes], VerifiedCheckpoint],
    prove_entry: Callable[[bytes, TlogProof, VerifiedCheckpoint], ProvenEntry],
) -> tuple[VerifiedCheckpoint, list[ProvenEntry]]:
    """Return the checkpoint of the entries, and the entries, all verified.

    ``checkpoint_of`` verifies a note as ``verify_checkpoint`` does, and ``prove_entry`` an entry as
    ``prove`` does. Raises ``DecodeError`` or ``VerificationError``: ``proof.invalid``,
    ``checkpoint.origin`` for a checkpoint of another log, ``signature.*``, ``key.*``,
    ``evidence.incomplete`` without entries, ``evidence.mismatch`` where they stand under two
    checkpoints or are out of order.
    """
    if not items:
        raise VerificationError("it holds no entries", code="evidence.incomplete")
    note = items[0].proof.note
    if any(item.proof.note != note for item in items):
        raise _mismatch("the entries stand under different checkpoints")
    covering = checkpoint_of(note)
    proven = [prove_entry(item.body, item.proof, covering) for item in items]
    indices = [one.place.index for one in proven]
    if indices != sorted(set(indices)):
        raise _mismatch("the entries are not in their order, each once")
    newest = max(one.at for one in proven)
    # the checkpoint is as old as that or newer, so that only the key's end matters
    covering.key.check(max(newest, covering.key.not_before))
    return covering, proven


def verify_checkpoint(note: bytes, trust: TrustDocument) -> VerifiedCheckpoint:
    """Return a checkpoint that a log key of ``trust`` has signed, at whatever time.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    log_keys = {one.key: one for one in trust.keys_for("log")}
    head, key = heads.verify(note, log_keys, trust.log)
    return VerifiedCheckpoint(head.checkpoint, log_keys[key])


def prove(body: bytes, proof: TlogProof, covering: VerifiedCheckpoint) -> ProvenEntry:
    """Return an entry that is proved to be under a checkpoint.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    index, point = proof.index, covering.point
    with error_location(f"entry {index}"):
        leaf = merkle.leaf_hash(body)
        merkle.verify_inclusion(index, point.size, leaf, proof.hashes, point.root)
        parsed = parse_entry(body)
        return ProvenEntry(body, parsed, Place(index, parsed.at), parse_time(parsed.at))


@contextmanager
def error_location(where: str) -> Iterator[None]:
    """Add a place to the message of each error that is raised in the block."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(f"{where}: {error}", code=error.code) from error
    except AgentguardError as error:
        raise VerificationError(f"{where}: {error}", code=error.code) from error


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.mismatch")
