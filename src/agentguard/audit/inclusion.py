"""Verifies that a log contains the entries of an evidence file.

Each entry has a proof of inclusion under the file's one checkpoint of the entry's shard. Proofs and
checkpoints are verified here; ``evidence.py`` verifies what the entries say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from agentguard.audit import checkpoint, merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.evidence_file import LoggedEntry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.tlog_proof import TlogProof
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an entry in the log, and the entry's time (RFC 3339)."""

    origin: str
    shard: int
    index: int
    at: str


class Head(NamedTuple):
    """A file's checkpoint of one shard, the key that signed it, and the shard's number."""

    checkpoint: Checkpoint
    key: TrustedKey
    shard: int


class ProvenEntry(NamedTuple):
    """An entry that the log contains, and its bytes; ``at`` is in seconds since the epoch."""

    body: bytes
    entry: Entry
    place: Place
    at: int


def verify_entries(
    items: Sequence[LoggedEntry],
    head_of: Callable[[bytes], Head],
    prove_entry: Callable[[bytes, TlogProof, Head], ProvenEntry],
) -> tuple[dict[str, Head], list[ProvenEntry]]:
    """Return the checkpoint of each shard by its origin, and the entries, all verified.

    ``head_of`` verifies a note as ``verify_head`` does, and ``prove_entry`` an entry as ``prove``
    does. Raises ``DecodeError`` or ``VerificationError``: ``proof.invalid``, ``checkpoint.origin``
    for a checkpoint of another log, ``signature.*``, ``key.*``, ``evidence.mismatch`` where one
    shard has two checkpoints or the entries are out of order.
    """
    by_note = {note: head_of(note) for note in dict.fromkeys(item.proof.note for item in items)}
    heads = {head.checkpoint.origin: head for head in by_note.values()}
    if len(heads) != len(by_note):
        raise _mismatch("the entries of one shard stand under different checkpoints")
    proven = [prove_entry(item.body, item.proof, by_note[item.proof.note]) for item in items]
    places = [(one.place.origin, one.place.index) for one in proven]
    if places != sorted(set(places)):
        raise _mismatch("the entries are not in their order, each once")
    for origin, head in heads.items():
        newest = max(one.at for one in proven if one.place.origin == origin)
        # the checkpoint is as old as that or newer, so that only the key's end matters
        head.key.check(max(newest, head.key.not_before))
    return heads, proven


def verify_head(note: bytes, trust: TrustDocument) -> Head:
    """Return a checkpoint that a log key of ``trust`` has signed, at whatever time.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    origin = checkpoint.parse(note).checkpoint.origin
    number = trust.shard_of(origin)
    return Head(*statements.check_checkpoint(note, trust, origin), number)


def prove(body: bytes, proof: TlogProof, head: Head) -> ProvenEntry:
    """Return an entry that is proved to be in the log of ``head``.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    index, point = proof.index, head.checkpoint
    with error_location(f"entry {index} of {point.origin}"):
        leaf = merkle.leaf_hash(body)
        merkle.verify_inclusion(index, point.size, leaf, proof.hashes, point.root)
        parsed = parse_entry(body)
        place = Place(point.origin, head.shard, index, parsed.at)
        return ProvenEntry(body, parsed, place, parse_time(parsed.at))


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
