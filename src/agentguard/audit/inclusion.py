"""Entries that a log holds: proved, each under the one checkpoint that a file has of its shard.

Here the proofs of inclusion and the checkpoints are verified, and the entries read. What the
entries say, and whether it holds, is ``evidence.py``'s question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from agentguard.audit import checkpoint, entry, merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry
from agentguard.audit.evidence_file import LoggedEntry
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands in the log, and the time that it gives (RFC 3339)."""

    origin: str
    shard: int
    index: int
    at: str


class Head(NamedTuple):
    """The checkpoint of a shard under which its entries are proved, and the key that signed it."""

    checkpoint: Checkpoint
    key: TrustedKey


class Held(NamedTuple):
    """An entry that the log holds; ``at`` in seconds since the epoch."""

    entry: Entry
    place: Place
    at: int


def prove(items: Sequence[LoggedEntry], trust: TrustDocument) -> tuple[dict[str, Head], list[Held]]:
    """Return the checkpoint of each shard by its origin, and the entries that they prove.

    Raises ``DecodeError`` or ``VerificationError``: ``proof.invalid``, ``checkpoint.origin`` for
    another log's, ``signature.*``, ``key.*``, ``evidence.mismatch`` where one shard has two
    checkpoints or the entries are not in their order.
    """
    heads = _heads(items, trust)
    held = [_prove(item, heads, trust) for item in items]
    for one, next_one in pairwise(held):
        first, second = one.place, next_one.place
        if (first.origin, first.index) >= (second.origin, second.index):
            raise _mismatch("the entries are not in their order, each once")
    for origin, head in heads.items():
        newest = max(item.at for item in held if item.place.origin == origin)
        # the checkpoint is not older than that, and may be younger: only a key's end counts
        head.key.check(max(newest, head.key.not_before))
    return heads, held


def shard_number(origin: str, trust: TrustDocument) -> int:
    """Return the number of a shard of the trusted log; raises ``VerificationError``."""
    log, _slash, number = origin.rpartition("/")
    if log != trust.log or _NUMBER.fullmatch(number) is None:
        raise VerificationError(f"{origin} is no shard of {trust.log}", code="checkpoint.origin")
    return int(number)


def _heads(items: Sequence[LoggedEntry], trust: TrustDocument) -> dict[str, Head]:
    notes: dict[str, bytes] = {}
    for item in items:
        note = item.proof.note
        origin = checkpoint.parse(note).checkpoint.origin
        if notes.setdefault(origin, note) != note:
            raise _mismatch(f"the entries of {origin} stand under different checkpoints")
    heads: dict[str, Head] = {}
    for origin, note in notes.items():
        shard_number(origin, trust)
        heads[origin] = Head(*statements.check_checkpoint(note, trust, origin))
    return heads


def _prove(item: LoggedEntry, heads: Mapping[str, Head], trust: TrustDocument) -> Held:
    index = item.proof.index
    head = heads[checkpoint.parse(item.proof.note).checkpoint.origin].checkpoint
    with located(f"entry {index} of {head.origin}"):
        leaf = merkle.leaf_hash(item.body)
        merkle.verify_inclusion(index, head.size, leaf, item.proof.hashes, head.root)
        parsed = entry.parse(item.body)
        place = Place(head.origin, shard_number(head.origin, trust), index, parsed.at)
        return Held(parsed, place, entry.time_of(parsed.at))


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
