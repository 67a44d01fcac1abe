"""The audit log: what its one writer may do, and its readers.

``storage/log.py`` and ``storage/reader.py`` implement the protocols on a shard's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from agentguard.audit.checkpoint import Checkpoint, End
from agentguard.audit.entry import Receipt, StoredEntry
from agentguard.audit.records import Record
from agentguard.audit.summary import Search


class AuditLog(Protocol):
    """An append-only log with one writer; safe to use from many threads."""

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry; the log's time never goes back past it."""

    def append(self, record: Record) -> Receipt:
        """Make ``record``, and everything enqueued before it, durable; return its place.

        Raises ``StorageError``; then the record is not in the log.
        """

    def enqueue(self, record: Record) -> None:
        """Hand over ``record``: it becomes durable with the next append, or within 50 ms."""

    def flush(self) -> None:
        """Make everything enqueued durable; raises ``StorageError``."""

    def close(self) -> None:
        """Flush, and give the log back; raises ``StorageError``."""


class LogReader(Protocol):
    """Reads a log as it lies there, trusting nothing of it. Each method raises ``StorageError``."""

    def registry(self) -> bytes | None:
        """The issuer's list of the shards (``audit/registry.py``), None if there is none."""

    def shards(self) -> Sequence[int]:
        """The numbers of the shards that are there, in order."""

    def entries(
        self, shard: int, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""

    def stored(self, shard: int) -> Iterator[StoredEntry]:
        """Yield the entries with all that stands beside them, in the order of the index."""

    def snapshot(self, shard: int) -> AbstractContextManager[None]:
        """Read, within it, what one shard holds at one moment."""

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:
        """Yield ``(index, table)`` of what is kept beside an entry that is not there."""

    def entry(self, shard: int, index: int) -> StoredEntry | None:
        """One entry with all that stands beside it, None if it is not there."""

    def search(
        self, shard: int, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield, in order, the indices past ``after`` of the entries whose summaries match."""

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls to which no outcome belongs, by the summaries."""

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        """Yield the signed notes in the order of their size."""

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:
        """The signed note of one size, or the newest; None if there is none."""

    def end(self, shard: int) -> End | None:
        """What the shard's writer would go on from; None if there is nothing."""

    def damage(self, shard: int) -> Iterator[str]:
        """Yield what is wrong with the way in which entries are found, in words."""

    def close(self) -> None:
        """Let go of what is open; reading on opens it anew."""
