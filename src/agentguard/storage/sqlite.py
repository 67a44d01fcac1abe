"""A log in an SQLite file, inside a state directory of mode 0700.

The writer holds a lock on a file beside it, so that a shard has one writer; readers open the file
read-only and need no lock. WAL with ``synchronous=FULL``: what a commit has returned is on disk as
far as the file system keeps its promise. Nothing here is trusted when it is read again:
``audit/verify.py`` checks it all.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from agentguard.audit import checkpoint, entry
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Record
from agentguard.audit.merkle import CompactRange
from agentguard.errors import AgentguardError, StorageError
from agentguard.keys import PublicKey
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import BEGINNING, Head

FILE: Final = "log.sqlite"
_LOCK: Final = "log.lock"
_VERSION: Final = 1
_APPLICATION: Final = 0x41474C31  # "AGL1"

_SCHEMA: Final = """
CREATE TABLE shards (
    shard INTEGER PRIMARY KEY, origin TEXT NOT NULL,
    size INTEGER NOT NULL, range BLOB NOT NULL
) STRICT;
CREATE TABLE entries (
    shard INTEGER NOT NULL, idx INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (shard, idx)
) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoints (
    shard INTEGER NOT NULL, size INTEGER NOT NULL, note BLOB NOT NULL, PRIMARY KEY (shard, size)
) STRICT, WITHOUT ROWID;
CREATE TABLE attachments (
    shard INTEGER NOT NULL, idx INTEGER NOT NULL, role TEXT NOT NULL,
    commitment TEXT NOT NULL, salt BLOB NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (shard, idx, role)
) STRICT, WITHOUT ROWID;
"""

MAX_LENGTH: Final = 16 * 1024 * 1024
"""Bytes of one value; SQLite refuses a longer one, and a file that claims to hold it."""

_CODES: Final = {
    sqlite3.SQLITE_TOOBIG: ("storage.failed", f"a value takes more than {MAX_LENGTH} bytes"),
    sqlite3.SQLITE_FULL: ("storage.full", "the disk is full: make room, then call again"),
    sqlite3.SQLITE_READONLY: ("storage.readonly", "it is read-only: give this user the right"),
    sqlite3.SQLITE_PERM: ("storage.readonly", "it is not accessible: give this user the right"),
    sqlite3.SQLITE_CANTOPEN: ("storage.missing", "it can't be opened: check that it exists"),
    sqlite3.SQLITE_CORRUPT: ("storage.corrupt", "it is damaged: keep a copy, restore a backup"),
    sqlite3.SQLITE_NOTADB: ("storage.corrupt", "it is no log: keep a copy, restore a backup"),
    sqlite3.SQLITE_BUSY: ("storage.locked", "another program holds it: close that program"),
    sqlite3.SQLITE_LOCKED: ("storage.locked", "another program holds it: close that program"),
}


_STATEMENTS: Final = sorted(part.strip() for part in _SCHEMA.split(";") if part.strip())


class SqliteBackend:
    """Writes one shard of the log in a state directory."""

    durable = True

    def __init__(
        self, connection: sqlite3.Connection, lock: int, path: Path, shard: int, anchor: Anchor
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._path = path
        self._shard = shard
        self._anchor = anchor

    @classmethod
    def create(cls, state: Path, origin: str, anchor: Anchor) -> SqliteBackend:
        """Make the log's file with one empty shard; raises ``StorageError`` if it exists."""
        path = state / FILE
        lock = _acquire(state / _LOCK)
        with _errors(path):
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError as error:
                os.close(lock)
                message = f"{path} exists already: it is not overwritten"
                raise StorageError(message, code="storage.exists") from error
            connection = sqlite3.connect(path, **_OPTIONS)
            _make_durable(connection)
            connection.executescript(
                f"BEGIN;{_SCHEMA}PRAGMA application_id={_APPLICATION};"
                f"PRAGMA user_version={_VERSION};COMMIT"
            )
            connection.execute("INSERT INTO shards VALUES (0, ?, 0, x'')", (origin,))
        return cls(connection, lock, path, 0, anchor)

    @classmethod
    def open(cls, state: Path, anchor: Anchor, log_key: PublicKey) -> SqliteBackend:
        """Take over the log in ``state`` as its one writer.

        Raises ``StorageError``: ``storage.missing``, ``storage.locked``, ``storage.readonly``,
        ``storage.corrupt``, ``storage.version``; ``storage.rolled_back`` where the anchor has
        seen more than the log holds.
        """
        path = state / FILE
        _require_file(path)
        lock = _acquire(state / _LOCK)
        try:
            with _errors(path):
                connection = sqlite3.connect(path, **_OPTIONS)
                _check_version(connection, path)  # before a byte of somebody else's file changes
                _make_durable(connection)
            backend = cls(connection, lock, path, 0, anchor)
            head = backend.read_head().checkpoint
            note = backend._check_head(head, log_key)
            anchor.check(head)
            if note is not None:
                anchor.write(note)
            anchor.settle()
        except BaseException:
            os.close(lock)
            raise
        return backend

    def _check_head(self, head: Checkpoint, log_key: PublicKey) -> bytes | None:
        """Refuse to sign onwards from a tree that the log's key has not vouched for.

        Returns the newest checkpoint's note, None for an empty log.
        """
        with _errors(self._path):
            row = self._connection.execute(
                "SELECT note FROM checkpoints WHERE shard = ? ORDER BY size DESC LIMIT 1",
                (self._shard,),
            ).fetchone()
        try:
            signed = checkpoint.verify(bytes(row[0]), log_key, origin=head.origin) if row else None
        except (AgentguardError, TypeError, ValueError) as error:
            raise _damaged(self._path, str(error)) from error
        if signed != head and head.size > 0:
            raise _damaged(self._path, "its tree is not the one of its newest checkpoint")
        return bytes(row[0]) if row else None

    def read_head(self) -> Head:
        """Read the durable end from the file."""
        with _errors(self._path):
            if self._connection.in_transaction:
                self._connection.rollback()
            row = self._connection.execute(
                "SELECT origin, size, range FROM shards WHERE shard = ?", (self._shard,)
            ).fetchone()
            last = self._connection.execute(
                "SELECT idx, body FROM entries WHERE shard = ? ORDER BY idx DESC LIMIT 1",
                (self._shard,),
            ).fetchone()
        kinds = (*map(type, row or ()), *map(type, last or (0, b"")))
        if kinds != (str, int, bytes, int, bytes) or row[1] != (last[0] + 1 if last else 0):
            raise _damaged(self._path, "its newest entry is not the one of its newest checkpoint")
        origin, size, peaks = row
        try:
            tree = CompactRange.decode(size, peaks)
            at = entry.parse(last[1]).at if last else BEGINNING
            datetime.fromisoformat(at)
            return Head(tree, Checkpoint(origin, size, tree.root()), at)
        except (AgentguardError, ValueError) as error:
            raise _damaged(self._path, str(error)) from error

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        """Write a batch, its checkpoint and the head in one transaction, then the anchor."""
        self._anchor.settle()
        note = sign()
        size = head.checkpoint.size
        first = size - len(records)
        entries = [(self._shard, first + i, r.body) for i, r in enumerate(records)]
        beside = [
            (self._shard, first + i, *attachment)
            for i, record in enumerate(records)
            for attachment in record.attachments
        ]
        with _errors(self._path):
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", entries)
                self._connection.executemany(
                    "INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?)", beside
                )
                execute("INSERT INTO checkpoints VALUES (?, ?, ?)", (self._shard, size, note))
                execute(
                    "UPDATE shards SET size = ?, range = ? WHERE shard = ?",
                    (size, head.tree.encode(), self._shard),
                )
                execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):  # the first error is the one to report
                        execute("ROLLBACK")
                raise
        self._anchor.write(note)

    def close(self) -> None:
        """Close the file and release the lock."""
        with suppress(
            sqlite3.Error
        ):  # what is in the write-ahead log is as durable, but less handy
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
        self._anchor.close()
        os.close(self._lock)

    def abandon(self) -> None:
        """In a fork: drop the inherited lock; the connection is kept, unused, and never closed."""
        _INHERITED.append(self._connection)
        os.close(self._lock)


class SqliteReader:
    """Reads the log in a state directory without taking it over; a ``LogReader``."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE
        _require_file(self._path)
        # A log on read-only storage, as an auditor gets it: even to read, SQLite would write there.
        whole = not self._path.with_name(FILE + "-wal").exists()
        frozen = "&immutable=1" if whole and not os.access(state, os.W_OK) else ""
        with _errors(self._path):
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro{frozen}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            weakref.finalize(self, self._connection.close)
            _check_version(self._connection, self._path)

    def shards(self) -> Sequence[int]:
        """The numbers of the shards that the file names."""
        rows = self._rows((int,), "SELECT shard FROM shards ORDER BY shard")
        numbers = [row[0] for row in rows]
        if len(set(numbers)) != len(numbers):
            raise _damaged(self._path, "it names a shard twice")
        return numbers

    def entries(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)``."""
        statement = "SELECT idx, body FROM entries WHERE shard = ? ORDER BY idx"
        return self._rows((int, bytes), statement, shard)

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        """Yield the signed notes."""
        statement = "SELECT note FROM checkpoints WHERE shard = ? ORDER BY size"
        return (row[0] for row in self._rows((bytes,), statement, shard))

    def attachments(self, shard: int, index: int) -> Sequence[Attachment]:
        """What stands beside one entry."""
        statement = (
            "SELECT role, commitment, salt, data FROM attachments WHERE shard = ? AND idx = ?"
        )
        return [
            Attachment(*row)
            for row in self._rows((str, str, bytes, bytes), statement, shard, index)
        ]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _rows(self, kinds: tuple[type, ...], statement: str, *parameters: int) -> Iterator[Any]:
        """Yield rows of exactly these types: a file that was changed may have another schema."""
        with _errors(self._path):
            for row in self._connection.execute(statement, parameters):
                if tuple(map(type, row)) != kinds:
                    raise _damaged(self._path, "a row of it does not have the types of a log")
                yield row


_INHERITED: list[sqlite3.Connection] = []


_OPTIONS: Final[Any] = {"isolation_level": None, "check_same_thread": False, "timeout": 5.0}


def _make_durable(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _damaged(path: Path, problem: str) -> StorageError:
    message = f"{path} is damaged ({problem}): keep a copy, and run agentguard audit verify on it"
    return StorageError(message, code="storage.corrupt")


def _require_file(path: Path) -> None:
    if not path.is_file():
        message = f"there is no log at {path}: run agentguard init, or name the right state"
        raise StorageError(message, code="storage.missing")


def _acquire(path: Path) -> int:
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the lock {path} can't be opened ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        message = (
            f"this log has a writer already ({path}): use the guard that is open in this process "
            "(pass its agents to guard_tools, instead of a name), close the one in another "
            "process, or use another state"
        )
        raise StorageError(message, code="storage.locked") from error
    return lock


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is no log of this version, to the letter of its schema.

    A trigger would drop what is written, and a view never end: there are none in a log.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LENGTH)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        message = f"{path} is not a log of agentguard: name the right state"
        raise StorageError(message, code="storage.corrupt")
    if version != _VERSION:
        message = f"{path} has the format {version}, this agentguard knows {_VERSION}: upgrade it"
        raise StorageError(message, code="storage.version")
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(9)
    if sorted(str(sql) for (sql,) in found) != _STATEMENTS:
        message = f"{path} has tables, triggers or views that no log has: find out who made them"
        raise StorageError(message, code="storage.corrupt")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ``StorageError`` with a code and what to do."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own text, of a damaged schema
        raise _damaged(path, "its schema is no text") from error
    except (sqlite3.Error, OSError) as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        code, advice = _CODES.get(primary, ("storage.failed", "see what the system says"))
        raise StorageError(f"the log {path} failed ({error}): {advice}", code=code) from error
