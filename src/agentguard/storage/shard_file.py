"""The writer's side of one shard's file: batches and checkpoints go in, the anchor follows.

One process at a time has it, by a lock on the file beside it; which one, ``lease.py`` settles.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from agentguard.audit import checkpoint, entry
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Record
from agentguard.audit.merkle import CompactRange
from agentguard.errors import AgentguardError
from agentguard.keys import PublicKey
from agentguard.storage import lock, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import BEGINNING, Head


class ShardFile:
    """A ``Backend`` that writes one shard in a state directory."""

    durable = True

    def __init__(
        self, connection: sqlite3.Connection, held: int, path: Path, anchor: Anchor
    ) -> None:
        self._connection = connection
        self._held = held
        self._path = path
        self._anchor = anchor
        self._note: bytes | None = None  # of the newest checkpoint

    @classmethod
    def take(
        cls, path: Path, origin: str, anchor: Anchor, log_keys: Iterable[PublicKey]
    ) -> ShardFile | None:
        """Become the one writer of the shard at ``path``; None while another process is.

        A file that does not exist is made, empty. Raises ``StorageError``: ``storage.readonly``,
        ``storage.corrupt``, ``storage.version``; ``storage.rolled_back`` where the anchor has
        seen more than the file holds.
        """
        path.parent.mkdir(mode=0o700, exist_ok=True)
        held = lock.acquire(path.with_suffix(".lock"), wait=False)
        if held is None:
            return None
        with sqlite.INSIDE, ExitStack() as undo:
            undo.callback(lock.release, held)
            with sqlite.errors(path):
                if not path.exists():
                    _make(path, origin)
                connection = sqlite3.connect(path, **sqlite.OPTIONS)
                undo.callback(connection.close)
                # before a byte of somebody else's file changes
                sqlite.check_version(connection, path)
                sqlite.make_durable(connection)
            taken = cls(connection, held, path, anchor)
            undo.callback(anchor.close)
            head = taken.read_head().checkpoint
            if head.origin != origin:
                raise sqlite.damaged(path, "it is another shard's, or another log's")
            taken._note = note = taken._check_head(head, log_keys)
            anchor.check(head)
            if note is not None:
                anchor.write(note)
            anchor.settle()
            undo.pop_all()
        return taken

    def _check_head(self, head: Checkpoint, log_keys: Iterable[PublicKey]) -> bytes | None:
        """Refuse to sign onwards from a tree that no key of the log has vouched for.

        Returns the newest checkpoint's note, None for an empty shard.
        """
        with sqlite.INSIDE, sqlite.errors(self._path):
            row = self._connection.execute(
                "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
            ).fetchone()
        try:
            note = bytes(row[0]) if row else None
            signed = (
                checkpoint.verify_any(note, log_keys, origin=head.origin)
                if note is not None
                else None
            )
        except (AgentguardError, TypeError, ValueError) as error:
            raise sqlite.damaged(self._path, str(error)) from error
        if signed != head and head.size > 0:
            raise sqlite.damaged(self._path, "its tree is not the one of its newest checkpoint")
        return note

    def read_head(self) -> Head:
        """Read the durable end from the file."""
        with sqlite.INSIDE, sqlite.errors(self._path):
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
            at = entry.parse(last[1]).at if last else BEGINNING
            datetime.fromisoformat(at)
            return Head(tree, Checkpoint(origin, size, tree.root()), at)
        except (AgentguardError, ValueError) as error:
            raise sqlite.damaged(self._path, str(error)) from error

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        """Write a batch, its checkpoint and the head in one transaction, then the anchor."""
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
        with sqlite.INSIDE, sqlite.errors(self._path):
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

    def close(self) -> None:
        """Close the file and release the lock."""
        with sqlite.INSIDE:
            # what is in the write-ahead log is as durable, but less handy
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
        self._anchor.close()
        lock.release(self._held)

    def abandon(self) -> None:
        """In a fork: drop the inherited descriptors; the connection is kept, and never closed."""
        sqlite.keep_inherited(self._path, self._connection)
        _NOTES[self._path.absolute()] = self._note
        self._anchor.close()


def inherited_note(path: Path) -> bytes | None:
    """Return the newest checkpoint of a shard that this process's parent writes, as of the fork."""
    return _NOTES.get(path.absolute())


_NOTES: dict[Path, bytes | None] = {}


def _make(path: Path, origin: str) -> None:
    """Make the file of an empty shard, whole or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # of somebody who died making it: the lock is ours
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(new, **sqlite.OPTIONS)
    try:
        connection.executescript(
            f"BEGIN;{sqlite.SCHEMA}PRAGMA application_id={sqlite.APPLICATION};"
            f"PRAGMA user_version={sqlite.VERSION};COMMIT"
        )
        connection.execute("INSERT INTO shard VALUES (1, ?, 0, x'')", (origin,))
    finally:
        connection.close()
    new.rename(path)
