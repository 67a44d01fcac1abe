"""``View``: what is read; ``Transaction``: what one job of a commit reads and wants."""

from __future__ import annotations

from typing import Final

from agentguard.audit import merkle
from agentguard.audit.entry import LOG, Record
from agentguard.audit.head import Head
from agentguard.audit.log import PageReader
from agentguard.audit.map import KEY_SIZE, Map, Overlay
from agentguard.audit.merkle import CompactRange
from agentguard.store import tree
from agentguard.store.engine import Writing
from agentguard.store.pages import MAX_PAGE

_ENDED: Final = "SELECT ends, key FROM ending WHERE log = ? AND ends <= ? ORDER BY ends LIMIT ?"


class View(Overlay):
    """The map and the pages at one moment. Keep no view after what reads there."""

    def __init__(self, map_: Map, pages: PageReader) -> None:
        super().__init__(map_)
        self.stored: Final = pages

    def page(self, name: str) -> bytes | None:
        """Return a page (``pages.py``); None for none."""
        return self.stored.page(name)

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages whose names begin with ``folder`` and a slash, the oldest first."""
        return self.stored.pages(folder)


class Transaction(View):
    """What one job reads, and what it wants to have written. Keep no transaction after the job."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.map, batch.before.stored)
        self._batch = batch
        self.at: Final = batch.at
        """The time of the commit (RFC 3339): no entry before is newer."""

        self.ends: list[tuple[int, bytes]] = []
        self.looked_at: list[tuple[int, bytes]] = []
        self.records: list[Record] = []
        self.written: dict[str, bytes | None] = {}

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

    def page(self, name: str) -> bytes | None:
        """Return a page, as it is written by then; None for none."""
        for written in (self.written, self._batch.pages):
            if name in written:
                return written[name]
        return super().page(name)

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages of a folder, as they are written by then."""
        found: dict[str, bytes | None] = {**super().pages(folder)}
        for written in (self._batch.pages, self.written):
            found.update({n: one for n, one in written.items() if n.startswith(f"{folder}/")})
        return {name: page for name, page in found.items() if page is not None}

    def write_page(self, name: str, data: bytes | None) -> None:
        """Write a page in the place of an earlier one, or remove it (None).

        Raises ``ValueError`` for a page that is too long.
        """
        if len(data or b"") > MAX_PAGE:
            message = f"a page has {MAX_PAGE} bytes at the most"
            raise ValueError(message)
        self.written[name] = data

    def append(self, record: Record) -> int:
        """Add an entry to the log, and return its index."""
        self.records.append(record)
        return self._batch.peaks.size + len(self.records) - 1


class Batch:
    """The state that a batch begins with, and what its jobs have changed."""

    def __init__(self, head: Head, peaks: CompactRange, at: str, view: View, rows: Writing) -> None:
        self.head, self.at, self.before, self.rows = head, at, view, rows
        self.map = view.below
        self.newest = head.at
        self.peaks = peaks.copy()
        self.records: list[Record] = []
        self.leaves: list[bytes] = []
        self.completed: list[tree.Completed] = []
        self.pages: dict[str, bytes | None] = {}
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
        self.pages.update(wanted.written)
        for key, value in wanted.puts.items():
            self.map.put(key, value)
