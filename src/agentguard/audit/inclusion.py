"""Entries that a log holds: proved, each under the one checkpoint that a file has of its shard.

Here the proofs of inclusion and the checkpoints are verified, and the entries read. What the
entries say, and whether it holds, is ``evidence.py``'s question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from agentguard.audit import checkpoint, merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, parse_entry, parse_time
from agentguard.audit.evidence_file import LoggedEntry
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands in the log, and the time that it gives (RFC 3339)."""

    origin: str
    shard: int
    index: int
    at: str


class Head(NamedTuple):
    """The one checkpoint of a shard in a file, the key that signed it, and the shard's number."""

    checkpoint: Checkpoint
    key: TrustedKey
    shard: int


class Held(NamedTuple):
    """An entry that the log holds; ``at`` in seconds since the epoch."""

    entry: Entry
    place: Place
    at: int


def verify(
    items: Sequence[LoggedEntry], trust: TrustDocument
) -> tuple[dict[str, Head], list[Held]]:
    """Return the checkpoint of each shard by its origin, and the entries that they prove.

    Raises ``DecodeError`` or ``VerificationError``: ``proof.invalid``, ``checkpoint.origin`` for
    another log's, ``signature.*``, ``key.*``, ``evidence.mismatch`` where one shard has two
    checkpoints or the entries are not in their order.
    """
    by_note = {
        note: _head(note, trust) for note in dict.fromkeys(item.proof.note for item in items)
    }
    heads = {head.checkpoint.origin: head for head in by_note.values()}
    if len(heads) != len(by_note):
        raise _mismatch("the entries of one shard stand under different checkpoints")
    held = [_held(item, by_note[item.proof.note]) for item in items]
    places = [(one.place.origin, one.place.index) for one in held]
    if places != sorted(set(places)):
        raise _mismatch("the entries are not in their order, each once")
    for origin, head in heads.items():
        newest = max(one.at for one in held if one.place.origin == origin)
        # the checkpoint is not older than that, and may be younger: only a key's end counts
        head.key.check(max(newest, head.key.not_before))
    return heads, held


def _head(note: bytes, trust: TrustDocument) -> Head:
    origin = checkpoint.parse(note).checkpoint.origin
    number = trust.shard_of(origin)
    return Head(*statements.check_checkpoint(note, trust, origin), number)


def _held(item: LoggedEntry, head: Head) -> Held:
    index, point = item.proof.index, head.checkpoint
    with located(f"entry {index} of {point.origin}"):
        leaf = merkle.leaf_hash(item.body)
        merkle.verify_inclusion(index, point.size, leaf, item.proof.hashes, point.root)
        parsed = parse_entry(item.body)
        place = Place(point.origin, head.shard, index, parsed.at)
        return Held(parsed, place, parse_time(parsed.at))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Say where something does not hold: what is raised below is raised again, with the place."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(f"{where}: {error}", code=error.code) from error
    except AgentguardError as error:
        raise VerificationError(f"{where}: {error}", code=error.code) from error


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.mismatch")
