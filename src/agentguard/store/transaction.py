"""What one job of a commit reads and wants, and what a batch of jobs has changed so far."""

from __future__ import annotations

from typing import Final

from agentguard.audit import merkle
from agentguard.audit.entry import LOG, Record
from agentguard.audit.head import Head
from agentguard.audit.map import KEY_SIZE, Map, Overlay
from agentguard.audit.merkle import CompactRange
from agentguard.store import tree
from agentguard.store.engine import Writing

_ENDED: Final = "SELECT ends, key FROM ending WHERE log = ? AND ends <= ? ORDER BY ends LIMIT ?"


class Transaction(Overlay):
    """What one job reads, and what it wants to have written. Keep no transaction after the job."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.map)
        self._batch = batch
        self.at: Final = batch.at
        """The time of the commit (RFC 3339): no entry before is newer."""

        self.ends: list[tuple[int, bytes]] = []
        self.looked_at: list[tuple[int, bytes]] = []
        self.records: list[Record] = []

    def put(self, key: bytes, value: bytes | None, *, ends: int | None = None) -> None:
        """Give a key a value, or take the key away (None).

        ``ends`` says from when on the key means nothing, in seconds since the epoch; ``ended`` then
        tells of it. Raises ``ValueError`` for what the map can't hold.
        """
        if ends is not None:
            self.ends.append((ends, key))
        super().put(key, value)

    def ended(self, at: int, most: int) -> list[bytes]:
        """Return keys that ended by a time, oldest first; the store tells of each once.

        It is a hint alone, that somebody may have changed: read in the value whether it has ended.
        """
        found = [(ends, key) for ends, key in self._batch.rows.query(_ENDED, (LOG, at, most))]
        self.looked_at += found
        return [key for _ends, key in found if isinstance(key, bytes) and len(key) == KEY_SIZE]

    def require_entry(self) -> None:
        """Raise ``ValueError`` for a change of the map that follows from no entry."""
        if self.puts and not self.records:
            message = "a change of the map follows from an entry: append one"
            raise ValueError(message)

    def append(self, record: Record) -> int:
        """Add an entry to the log, and return its index."""
        self.records.append(record)
        return self._batch.peaks.size + len(self.records) - 1


class Batch:
    """The state that a batch begins with, and what its jobs have changed."""

    def __init__(self, head: Head, peaks: CompactRange, at: str, map_: Map, rows: Writing) -> None:
        self.head, self.at, self.map, self.rows = head, at, map_, rows
        self.newest = head.at
        self.peaks = peaks.copy()
        self.records: list[Record] = []
        self.leaves: list[bytes] = []
        self.completed: list[tree.Completed] = []
        self.ends: list[tuple[int, bytes]] = []
        self.looked_at: list[tuple[int, bytes]] = []

    def take(self, wanted: Transaction) -> None:
        """Take what a job wants that has returned. Where this raises, the whole batch fails."""
        for record in wanted.records:
            leaf = merkle.leaf_hash(record.body)
            self.leaves.append(leaf)
            self.peaks.append(leaf, self.completed)
            self.newest = max(self.newest, record.summary.at)
            self.at = max(self.at, self.newest)
        self.records += wanted.records
        self.ends += wanted.ends
        self.looked_at += wanted.looked_at
        for key, value in wanted.puts.items():
            self.map.put(key, value)
