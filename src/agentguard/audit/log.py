"""The protocols of the audit log: for the one writer of a shard, and for readers.

``storage/log.py`` and ``storage/reader.py`` implement the protocols on a shard's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from agentguard.audit.checkpoint import Checkpoint, End
from agentguard.audit.entry import LogPlace, Record, StoredEntry
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.audit.summary import Search
from agentguard.signing.dsse import JointSignature
from agentguard.signing.keys import Signer


class AuditLog(Protocol):
    """An append-only log with one writer; safe to use from many threads."""

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry; the log's time never goes back past it."""

    def append(self, record: Record) -> LogPlace:
        """Make ``record``, and all signed records enqueued before, durable; return its place.

        Raises ``StorageError``; the record is not in the log then.
        """

    def enqueue(self, record: Record | UnsignedOutcome) -> None:
        """Enqueue ``record``, which becomes durable with the next append, or within 50 ms.

        An unsigned outcome waits for ``give_signature`` before an append takes it along. If no
        signature comes within the 50 ms, the outcome's own signer signs the outcome alone.
        """

    def unsigned(self, signer: Signer) -> Sequence[UnsignedOutcome]:
        """Return the enqueued outcomes that wait for a signature of ``signer``.

        There are at most ``dsse.MAX_SUBJECTS - 1``, so that one more statement can be signed.
        """

    def give_signature(
        self, outcomes: Sequence[UnsignedOutcome], signature: JointSignature
    ) -> None:
        """Give ``outcomes`` that still wait their signature, for the next append to take along."""

    def flush(self) -> None:
        """Make all enqueued records durable; raises ``StorageError``."""

    def close(self) -> None:
        """Flush, and release the log for another writer; raises ``StorageError``."""


class LogReader(Protocol):
    """Reads a stored log without verifying it. Each method raises ``StorageError``."""

    def registry(self) -> bytes | None:
        """Return the registry of the shards (``audit/registry.py``), None without one."""

    def shards(self) -> Sequence[int]:
        """Return the numbers of the stored shards, in order."""

    def entries(
        self, shard: int, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""

    def stored(self, shard: int) -> Iterator[StoredEntry]:
        """Yield the entries with their summaries and attachments, in the order of the index."""

    def snapshot(self, shard: int) -> AbstractContextManager[None]:
        """Return a context in which all reads of a shard see one moment."""

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:
        """Yield ``(index, table)`` of each row that belongs to a missing entry."""

    def shared_ids(self, shard: int) -> Iterator[tuple[int, int]]:
        """Yield the calls with the id of an earlier call, the first hundred, by the summaries.

        Each is the index of the call's authorization, and that of the first call with the id.
        """

    def entry(self, shard: int, index: int) -> StoredEntry | None:
        """Return an entry with its summary and attachments, None without one."""

    def search(
        self, shard: int, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield, in order, the indices past ``after`` of the entries whose summaries match."""

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""

    def traces(self, shard: int, prefix: str) -> Iterator[str]:
        """Yield, sorted, the ids of the traces of entries that begin with ``prefix``."""

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls without an outcome, according to the summaries."""

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        """Yield the signed notes in the order of their size."""

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:
        """Return the signed note of one size, or the newest note; None without one."""

    def end(self, shard: int) -> End | None:
        """Return the stored state from which the shard's writer continues; None without one."""

    def damage(self, shard: int) -> Iterator[str]:
        """Yield in words what is damaged in the shard's file, such as an index."""

    def close(self) -> None:
        """Close all open files; the next read opens them again."""
