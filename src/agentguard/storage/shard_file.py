"""Writes one shard's file: each batch of entries with a checkpoint, and then the anchor.

A lock on a file beside the shard's file lets one process write at a time. ``lease.py`` chooses the
shard that a process writes, ``sqlite.py`` has the file's schema, and ``reader.py`` reads the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agentguard.audit import merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import BEGINNING, Record, parse_time, time_of
from agentguard.audit.merkle import CompactRange
from agentguard.errors import AgentguardError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import files, lock, reserve, sqlite
from agentguard.storage.anchor import ROLLED_BACK, Anchor
from agentguard.storage.backend import Head
from agentguard.storage.owned_lock import SQLITE_LOCK


class ShardFile:
    """A ``Backend`` that writes one shard in a state directory."""

    durable = True

    def __init__(
        self, connection: sqlite3.Connection, lock_file: int, path: Path, anchor: Anchor
    ) -> None:
        self._connection = connection
        self._lock_file = lock_file
        self._path = path
        self._anchor = anchor
        self._note: bytes | None = None  # the newest checkpoint's note

    @classmethod
    def take(
        cls, path: Path, origin: str, anchor: Anchor, trust: TrustDocument
    ) -> ShardFile | None:
        """Lock the shard at ``path`` for writing; return None while another process writes it.

        Make an empty shard if the file does not exist. Raises ``StorageError``:
        ``storage.readonly``, ``storage.corrupt``, ``storage.version``; ``storage.rolled_back`` for
        a file without the entries that the anchor vouches for;
        ``storage.unvouched`` for a head that a compromised key signed and the anchor does not have.
        """
        with sqlite.errors(path):
            files.make_folder(path.parent)
        lock_file = lock.try_acquire(path.with_suffix(".lock"))
        if lock_file is None:
            return None
        unlock = ExitStack()  # outermost: a lock must be released outside SQLITE_LOCK (fork.py)
        unlock.callback(lock.release, lock_file)
        with unlock, SQLITE_LOCK, ExitStack() as undo:
            with sqlite.errors(path):
                if not files.exists(path):
                    row = "INSERT INTO shard VALUES (1, ?, 0, x'')"
                    sqlite.make(path, sqlite.SHARD, row, (origin,))
                connection = sqlite.connect(path)
                undo.callback(connection.close)
            shard_file = cls(connection, lock_file, path, anchor)
            undo.callback(anchor.close)
            head = shard_file.read_head().checkpoint
            if head.origin != origin:
                raise sqlite.damaged(path, "it is another shard's, or another log's")
            shard_file._note = note = shard_file._check_head(head, trust, anchor.read())
            anchor_head = anchor.check(head)
            if anchor_head is not None and anchor_head.size < head.size:
                shard_file._check_prefix(anchor_head, head)
            shard_file._check_beside(head)
            if note is not None:
                anchor.write(note)
            anchor.settle()
            undo.pop_all()
            unlock.pop_all()
        return shard_file

    def _check_head(
        self, head: Checkpoint, trust: TrustDocument, anchor_head: Checkpoint | None
    ) -> bytes | None:
        """Return the newest checkpoint's note, None for an empty shard.

        Refuse a tree whose checkpoint no key of the log has signed.
        """
        with SQLITE_LOCK, sqlite.errors(self._path):
            row = self._connection.execute(
                "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
            ).fetchone()
        if row is None and head.size == 0:
            return None
        try:
            note = bytes(row[0]) if row else b""
            checkpoint, signer = statements.check_checkpoint(note, trust, head.origin)
        except (AgentguardError, TypeError, ValueError) as error:
            raise sqlite.damaged(self._path, str(error)) from error
        if checkpoint != head:
            raise sqlite.damaged(self._path, "its tree is not the one of its newest checkpoint")
        if signer.compromised_since is not None and anchor_head != head:
            message = (
                f"the newest entries of {self._path} are vouched for by a compromised key alone: "
                "nothing is added to them"
            )
            raise StorageError(message, code="storage.unvouched")
        return note

    def _check_prefix(self, anchor_head: Checkpoint, head: Checkpoint) -> None:
        """Refuse a shard that does not continue the tree that its anchor has seen.

        The shard is longer than its anchor: a commit is not anchored yet, or somebody added rows.
        """
        tree = CompactRange()
        with SQLITE_LOCK, sqlite.errors(self._path):
            rows = self._connection.execute("SELECT idx, body FROM entries ORDER BY idx")
            for index, body in rows:
                if (type(body), index) != (bytes, tree.size):
                    raise sqlite.damaged(self._path, f"entry {tree.size} is not there")
                tree.append(merkle.leaf_hash(body))
                if tree.size == anchor_head.size and tree.root() != anchor_head.root:
                    message = (
                        f"the first {anchor_head.size} entries of {self._path} are not those that "
                        f"its anchor has seen: {ROLLED_BACK}"
                    )
                    raise StorageError(message, code="storage.rolled_back")
        if (tree.size, tree.root()) != (head.size, head.root):
            raise sqlite.damaged(self._path, "its entries are not those of its newest checkpoint")

    def _check_beside(self, head: Checkpoint) -> None:
        """Refuse rows with indices past the newest entry, which would block later entries."""
        with SQLITE_LOCK, sqlite.errors(self._path):
            for table in ("summaries", "attachments", "checkpoints"):
                column, past = (
                    ("size", head.size) if table == "checkpoints" else ("idx", head.size - 1)
                )
                statement = f"SELECT 1 FROM {table} WHERE {column} > ? LIMIT 1"  # noqa: S608
                if self._connection.execute(statement, (past,)).fetchone() is not None:
                    raise sqlite.damaged(self._path, f"{table} go on past its newest entry")

    def read_head(self) -> Head:
        """Return the newest durable checkpoint, with the tree and the newest entry's time."""
        with SQLITE_LOCK, sqlite.errors(self._path):
            if self._connection.in_transaction:
                self._connection.rollback()
            row = self._connection.execute("SELECT origin, size, range FROM shard").fetchone()
            last = self._connection.execute(
                "SELECT idx, body FROM entries ORDER BY idx DESC LIMIT 1"
            ).fetchone()
        kinds = (*map(type, row or ()), *map(type, last or (0, b"")))
        if kinds != (str, int, bytes, int, bytes) or row[1] != (last[0] + 1 if last else 0):
            raise sqlite.damaged(
                self._path, "its newest entry is not the one of its newest checkpoint"
            )
        origin, size, peaks = row
        try:
            tree = CompactRange.decode(size, peaks)
            at = time_of(last[1]) if last else BEGINNING
            parse_time(at)
            return Head(tree, Checkpoint(origin, size, tree.root()), at)
        except AgentguardError as error:
            raise sqlite.damaged(self._path, str(error)) from error

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        """Write a batch, its checkpoint and the head in one transaction, then the anchor."""
        reserve.require(self._path.parent.parent)
        self._anchor.settle()
        note = sign()
        size = head.checkpoint.size
        first = size - len(records)
        entries = [(first + i, record.body) for i, record in enumerate(records)]
        summaries = [(first + i, *record.summary) for i, record in enumerate(records)]
        beside = [
            (first + i, *attachment)
            for i, record in enumerate(records)
            for attachment in record.attachments
        ]
        with SQLITE_LOCK, sqlite.errors(self._path):
            execute = self._connection.execute
            many = self._connection.executemany
            execute("BEGIN IMMEDIATE")
            try:
                many("INSERT INTO entries VALUES (?, ?)", entries)
                many("INSERT INTO summaries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", summaries)
                many("INSERT INTO attachments VALUES (?, ?, ?, ?, ?)", beside)
                execute("INSERT INTO checkpoints VALUES (?, ?)", (size, note))
                execute("UPDATE shard SET size = ?, range = ?", (size, head.tree.encode()))
                execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):  # the first error is the one to report
                        execute("ROLLBACK")
                raise
        self._note = note
        self._anchor.write(note)

    def try_write(self) -> None:
        """Write the file's first page again as it is, where there is room for more entries."""
        reserve.require(self._path.parent.parent)
        self._anchor.settle()
        files.require_room(self._path.parent, _ROOM)  # one page may fit where no entry does
        with SQLITE_LOCK, sqlite.errors(self._path):
            # SQLite writes no row that stays the same
            self._connection.execute(f"PRAGMA user_version={sqlite.SHARD.version}")

    def close(self) -> None:
        """Close the file and release the lock."""
        with SQLITE_LOCK:
            # The write-ahead log is as durable, and one file is easier to copy. A reader of the
            # file is not waited for: one in this process waits for SQLITE_LOCK by itself.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
        self._anchor.close()
        lock.release(self._lock_file)

    def abandon(self) -> None:
        """Close the inherited anchor in a forked process; keep the connection open for ever."""
        sqlite.keep_inherited(self._path, self._connection)
        _NOTES[self._path.absolute()] = self._note
        self._anchor.close()


def inherited_note(path: Path) -> bytes | None:
    """Return the newest checkpoint, at the time of the fork, of a shard that the parent writes."""
    return _NOTES.get(path.absolute())


_NOTES: dict[Path, bytes | None] = {}

_ROOM: Final = 256 << 10
"""The bytes that a disk has to have room for; an entry with its pages takes some ten thousand."""
