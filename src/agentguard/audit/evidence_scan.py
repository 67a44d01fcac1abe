"""Reads a log once for the evidence of any number of its calls.

Each needed shard is read once; of most entries, only the hash stays in memory. Nothing here is
trusted: ``prove.py`` makes the evidence, and has it verified.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from agentguard.audit import checkpoint, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, StoredEntry
from agentguard.audit.entry_bytes import may_be_call, may_be_kind, payload_contains_any
from agentguard.audit.evidence import KeyName
from agentguard.audit.find import Progress
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.announcements import ConfigEntry, KeyEntry, PolicyEntry, RosterEntry
from agentguard.audit.kinds.calls import OutcomeEntry
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.signing import canonical

_SHARED: Final = 128
"""The most entries, and as many proofs, that are kept since other calls need them as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One shard up to its newest checkpoint: the hashes of all entries, and a few indices.

    ``about`` are the indices of entries by kind and by what they are about, in order: of an outcome
    the digest of the invocation, of a configuration its own digest (``_about``). ``keys`` are the
    indices of the entries that announce a key.
    """

    number: int
    note: bytes
    head: Checkpoint
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    about: defaultdict[tuple[str, str], list[int]] = field(
        default_factory=lambda: defaultdict(list)
    )
    keys: dict[KeyName, int] = field(default_factory=dict)

    def before(self, index: int, kind: str, name: str) -> list[int]:
        """Return the indices below ``index`` of the entries of a kind about ``name``."""
        return [one for one in self.about.get((kind, name), ()) if one < index]


class LogScan:
    """The shards of a log, each read when it is needed.

    ``subjects`` are the digests (hex) of the invocations whose evidence is wanted. ``progress`` is
    called with the number of the entries that have been read. Methods raise ``StorageError``.
    """

    def __init__(self, reader: LogReader, subjects: Collection[str], progress: Progress) -> None:
        self.reader = reader
        self._subjects = frozenset(subject.encode() for subject in subjects)
        self._progress = progress
        self._counter = itertools.count(1)
        self._shards: dict[int, Shard | None] = {}
        self._kept_entry = lru_cache(_SHARED)(self._entry)
        self._kept_proof = lru_cache(_SHARED)(self._proof)

    def shard(self, number: int) -> Shard | None:
        """Return a shard; None for a shard without a readable checkpoint."""
        if number not in self._shards:
            self._shards[number] = None
            note = self.reader.checkpoint(number)
            with suppress(DecodeError):
                if note is not None:
                    shard = Shard(number, note, checkpoint.parse(note).checkpoint)
                    self._shards[number] = shard
                    self._scan(shard)
        return self._shards[number]

    def read_shards(self) -> list[Shard]:
        """Return the shards that have been read so far."""
        return [shard for shard in self._shards.values() if shard is not None]

    def with_key(self, name: KeyName, first: Sequence[int]) -> Shard | None:
        """Return a shard that announces a key, preferably of those with the numbers ``first``.

        The columns say which of the others to read before the rest.
        """
        for number in dict.fromkeys(itertools.chain(first, self._by_columns())):
            shard = self.shard(number)
            if shard is not None and name in shard.keys:
                return shard
        return None

    def entry(self, shard: Shard, index: int, *, is_shared: bool) -> StoredEntry:
        """Return an entry; one that ``is_shared`` is kept for other calls.

        Raises ``VerificationError`` (``evidence.incomplete``) where the entry is gone.
        """
        stored = (self._kept_entry if is_shared else self._entry)(shard, index)
        if stored is None:
            message = f"the entry {index} of {shard.head.origin} is gone"
            raise VerificationError(message, code="evidence.incomplete")
        return stored

    def proof(self, shard: Shard, index: int) -> tuple[bytes, ...]:
        """Return the proof that a shard includes an entry (RFC 6962, 2.1.1).

        Raises ``VerificationError`` (``evidence.incomplete``) where an entry before it is gone.
        """
        if index >= shard.tree.size:
            message = f"an entry of {shard.head.origin} before the entry {index} is gone"
            raise VerificationError(message, code="evidence.incomplete")
        return self._kept_proof(shard, index)

    def _entry(self, shard: Shard, index: int) -> StoredEntry | None:
        return self.reader.entry(shard.number, index)

    def _proof(self, shard: Shard, index: int) -> tuple[bytes, ...]:
        return tuple(shard.tree.inclusion_proof(index))

    def _by_columns(self) -> Iterator[int]:
        """Yield the numbers of all shards, first of those whose columns show keys."""
        yield from sorted(self.reader.shards(), key=lambda one: not self._announces_key(one))

    def _announces_key(self, number: int) -> bool:
        return any(True for _index in self.reader.search(number, Search(kind="key")))

    def _scan(self, shard: Shard) -> None:
        for index, body in self.reader.entries(shard.number):
            if index >= shard.head.size:
                break  # appended after the checkpoint was read
            self._progress(next(self._counter))
            shard.tree.append(merkle.leaf_hash(body))
            # parsing all calls and outcomes of a long log would take minutes
            if may_be_call(body) or self._is_other_outcome(body):
                continue
            # a malformed entry belongs to no call; audit verify reports it
            with suppress(AgentguardError):
                entry = parse_entry(body)
                about = _about(entry)
                if isinstance(entry, KeyEntry):
                    shard.keys.setdefault(entry.name, index)
                elif about is not None:
                    shard.about[entry.kind, about].append(index)

    def _is_other_outcome(self, body: bytes) -> bool:
        """Return whether an entry is the outcome of a call whose evidence is not wanted."""
        is_outcome = may_be_kind(body, "outcome")
        return is_outcome and not payload_contains_any(body, self._subjects)


def engine_name(engine: object, policy_sha256: object) -> str:
    """Return what a policy entry is about: the engine and the policy's digest."""
    return canonical.dumps([engine, policy_sha256]).decode()


def _about(entry: Entry) -> str | None:
    """Return what an entry is about: of other kinds, the evidence of a call needs only keys."""
    about: str | None = None
    match entry:
        case OutcomeEntry():
            about = entry.invocation_sha256
        case AdministeredEntry():
            about = entry.call.invocation_sha256
        case IdentityEntry():
            about = entry.agent
        case DelegationEntry() | RosterEntry():
            about = entry.sha256
        case ConfigEntry():
            about = entry.config_sha256
        case PolicyEntry():
            about = engine_name(entry.engine, entry.policy_sha256)
    return about
