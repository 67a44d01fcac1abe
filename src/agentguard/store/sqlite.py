"""The store in one SQLite file, or in memory.

One process writes at a time: it holds the lock of a file beside the database. Never open the
database's file in another way in this process: closing it would drop SQLite's own locks.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

from agentguard.audit.log import PageReader
from agentguard.errors import StorageError
from agentguard.storage import files, local_disk, lock
from agentguard.storage import sqlite as shared
from agentguard.storage.owned_lock import OwnedLock
from agentguard.store import pages
from agentguard.store.engine import SCHEMA, MakeHead, Query, Row, T
from agentguard.store.pages import MemoryPages, SqlPages

FORMAT: Final = shared.Format(0x41475331, 1, SCHEMA)  # "AGS1"

ERASED: Final = "(commitment, salt, data) = ('', x'', x'')"
"""The row of an erased attachment; a deletion of the row would move other rows."""

_MOVE_HEAD: Final = "UPDATE head SET note = ?, peaks = ? WHERE log = 0"
_FIRST_HEAD: Final = "INSERT INTO head VALUES (0, ?, x'')"
_ERASE: Final = (
    "UPDATE attachment SET commitment = '', salt = x'', data = x''"  # noqa: S608  of a constant
    f" WHERE log = 0 AND idx = ? AND NOT {ERASED}"
)
_ROOM: Final = 256 << 10
"""The bytes that a disk has to have room for; an entry with its pages takes some ten thousand."""


def path_in(state: Path) -> Path:
    """Return where the log of a state directory is."""
    return state / "log.sqlite"


def make(path: Path, note: bytes) -> None:
    """Make the file of an empty store, whole or not at all, with its first head."""
    shared.make(path, FORMAT, _FIRST_HEAD, (note,))


class Connection:
    """One connection of SQLite: the queries of a moment, or a transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.raw = connection
        self._path = path
        self._is_to_cut = False

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads."""
        try:
            return _rows(self.raw, statement, values)
        except sqlite3.Error:
            with shared.errors(self._path):  # a job sees what kind of error it is
                raise

    def write(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each of the rows."""
        if rows:
            self.raw.executemany(statement, rows)

    def write_head(self, make: MakeHead) -> bytes:
        """Replace the head now."""
        made = make()
        self.raw.execute(_MOVE_HEAD, made)
        return made[0]

    def write_pages(self, written: Mapping[str, bytes | None]) -> None:
        """Write pages, and remove those that are None."""
        for statement, rows in pages.statements(written):
            self.write(statement, rows)
        if pages.removes_requests(written):
            self._forget_requests()

    def _forget_requests(self) -> None:
        """Write the table of requests anew, and cut off the write-ahead log after the commit.

        SQLite leaves copies of rows that it has moved.
        """
        self.write_anew("request")
        self._is_to_cut = True

    def write_anew(self, table: str) -> None:
        """Write a table of pages anew."""
        kept = self.query(f"SELECT log, name, data FROM {table} ORDER BY rowid", ())  # noqa: S608  a constant
        self.raw.execute(f"DELETE FROM {table}")  # noqa: S608  it frees each block of the table
        self.write(f"INSERT INTO {table} VALUES (?, ?, ?)", kept)  # noqa: S608

    def touch(self) -> None:
        """Write the file's first page again as it is, where there is room for more entries."""
        files.require_room(self._path.parent, _ROOM)  # one page may fit where no entry does
        # SQLite writes no row that stays the same
        self.raw.execute(f"PRAGMA user_version={FORMAT.version}")

    def commit(self) -> None:
        """Commit, with the disk waited for (``synchronous=FULL``)."""
        self.raw.execute("COMMIT")
        if self._is_to_cut:
            self.raw.execute("PRAGMA busy_timeout=0")  # other writers wait for this one
            with suppress(sqlite3.Error):  # the commit is durable; the next one tries again
                self._is_to_cut = not self.cut()
            self.raw.execute(f"PRAGMA busy_timeout={1000 * shared.PATIENCE}")

    def cut(self) -> bool:
        """Cut off the write-ahead log, which has old rows; return False while somebody reads it."""
        ((busy, *_pages),) = self.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy

    def transact(self, begin: str, work: Callable[[Connection], T]) -> T:
        """Begin; return what ``work`` returns, and roll back whatever it has not committed."""
        with self.raw:  # C code, which also rolls back after an interrupt
            self.raw.execute(begin)
            done = work(self)
            if self.raw.in_transaction:
                self.raw.execute("ROLLBACK")
            return done


class _Kept:
    """A transaction in memory; its rows are kept as they are until somebody reads."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.query = engine.query
        self.rows: list[tuple[str, Sequence[Sequence[object]]]] = []
        self.pages: Mapping[str, bytes | None] = {}
        self.make_head: MakeHead | None = None
        self.number = engine.newest + 1

    def write(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Keep one statement with its rows."""
        if rows:
            self.rows.append((statement, rows))

    def write_head(self, make: MakeHead) -> bytes:
        """Keep what makes the head."""
        self.make_head = make
        return b""

    def write_pages(self, written: Mapping[str, bytes | None]) -> None:
        """Keep pages."""
        self.pages = written

    def touch(self) -> None:
        """Do nothing: a write into memory does not fail."""

    def commit(self) -> None:
        """Commit: one statement, which an interrupt comes before or after."""
        if self.rows or self.pages:
            self._engine.committed.append(self)


class MemoryEngine:
    """An ``Engine`` in the memory of one process; a fork has none of it.

    What is committed goes into SQLite when somebody reads there. The head, which has to be signed,
    is made when somebody reads the head: in most logs in memory, nobody does.
    """

    is_shared = False

    def __init__(self, note: bytes) -> None:
        self._connection = sqlite3.connect(":memory:", **shared.OPTIONS)
        self._connection.executescript(SCHEMA)
        self._connection.execute(_FIRST_HEAD, (note,))
        self._lock = OwnedLock("the store was read or written")  # there is one connection for both
        self.committed: list[_Kept] = []
        self._make_head: MakeHead | None = None
        self._pages = MemoryPages()
        self._paged = 0

    @property
    def newest(self) -> int:
        """The number of the newest commit; the database's own is that of the newest in it."""
        return self.committed[-1].number if self.committed else self._written()

    def _written(self) -> int:
        (number,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(number)

    def write(self, work: Callable[[_Kept], T]) -> T:
        """Return what ``work`` returns in a transaction."""
        with self._lock.held():
            return work(_Kept(self))

    def read(self, work: Callable[[Query], T]) -> T:
        """Return what ``work`` returns, whose queries see one moment."""
        with self._lock.held():
            return work(self.query)

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads what is committed."""
        with shared.errors(Path(":memory:")):
            if self.committed:
                self._write()
            if self._make_head is not None and "FROM head" in statement:
                self._connection.execute(_MOVE_HEAD, self._make_head())
                self._make_head = None
            return _rows(self._connection, statement, values)

    def pages_at(self, query: Query) -> PageReader:  # noqa: ARG002
        """Return what reads the pages, without a look into SQLite."""
        return self

    def page(self, name: str) -> bytes | None:
        """Return a page; None for none."""
        return self._pages_by_now().page(name)

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages of a folder, the oldest first."""
        return self._pages_by_now().pages(folder)

    def _pages_by_now(self) -> MemoryPages:
        late = list(takewhile(lambda kept: kept.number > self._paged, reversed(self.committed)))
        for kept in reversed(late):
            for name, page in kept.pages.items():
                if page is None:
                    self._pages.pop(name, None)
                else:
                    self._pages[name] = page
            self._paged = kept.number
        return self._pages

    def _write(self) -> None:
        self._pages_by_now()
        written, newest = self._written(), self.committed[-1]
        with self._connection:
            self._connection.execute("BEGIN")
            for kept in self.committed:
                if kept.number > written:
                    for statement, rows in kept.rows:
                        self._connection.executemany(statement, rows)
            heads = [one.make_head for one in self.committed if one.make_head is not None]
            self._make_head = heads[-1] if heads else self._make_head
            self._connection.execute(f"PRAGMA user_version={newest.number}")
        self.committed.clear()

    def close(self) -> None:
        """Leave all as it is: what is in memory goes with this object."""


def _rows(connection: sqlite3.Connection, statement: str, values: Sequence[object]) -> list[Row]:
    given = [json.dumps(one) if isinstance(one, list) else one for one in values]
    return connection.execute(statement, given).fetchall()


class FileEngine:
    """An ``Engine`` in one file on a local disk; without ``writes`` it writes nothing, ever."""

    is_shared = True

    def __init__(self, path: Path, *, writes: bool = True, form: shared.Format = FORMAT) -> None:
        self._path = path
        self._form = form
        self._writes = writes
        self._lock_path = path.with_name(f"{path.name}-lock")
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._opened: tuple[int, int] | None = None

    def write(self, work: Callable[[Connection], T]) -> T:
        """Return what ``work`` returns in a transaction under the lock.

        Raises ``StorageError``: ``storage.locked`` where another process holds the lock too long,
        ``storage.corrupt`` where another file is in the place of the database,
        ``storage.readonly`` where the file was opened for reading.
        """
        if not self._writes:
            raise StorageError("the store was opened for reading", code="storage.readonly")
        with shared.errors(self._path), lock.acquire(self._lock_path):
            if self._writer is None:
                self._writer = self._connected()
            self._require_same_file()
            return self._writer.transact("BEGIN IMMEDIATE", work)

    def read(self, work: Callable[[Query], T]) -> T:
        """Return what ``work`` returns, whose queries see one moment."""
        with shared.errors(self._path):
            return self._reading().transact("BEGIN", lambda begun: work(begun.query))

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads what is committed by now, in no transaction."""
        with shared.errors(self._path):
            return _rows(self._reading().raw, statement, values)

    def _reading(self) -> Connection:
        if self._reader is None:
            self._reader = self._connected()
        self._require_same_file()
        return self._reader

    def pages_at(self, query: Query) -> PageReader:
        """Return what reads the pages at the moment of a query."""
        return SqlPages(query)

    @property
    def is_open(self) -> bool:
        """Whether a file was opened, in whose place no other one is accepted until ``close``."""
        return self._opened is not None

    def disconnect(self) -> None:
        """Close the connections; the next use opens the same file again, or raises."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.raw.close()
        self._writer = self._reader = None

    def close(self) -> None:
        """Close the connections; the next use opens the file that is there by then."""
        self.disconnect()
        self._opened = None

    def _connected(self) -> Connection:
        if not self._writes:
            connection = shared.connect_to_read(self._path, self._form)
        else:
            local_disk.require(self._path.parent)
            connection = shared.connect(self._path, self._form)
        self._opened = self._opened or self._at_path()
        return Connection(connection, self._path)

    def _require_same_file(self) -> None:
        if self._at_path() != self._opened:
            raise shared.damaged(self._path, "another file has taken its place")

    def _at_path(self) -> tuple[int, int]:
        status = os.stat(self._path)  # noqa: PTH116  as each commit and each reading does
        return status.st_dev, status.st_ino


def erase(path: Path, indices: Iterable[int]) -> int:
    """Empty all attachments of these entries, with their salts; return the number of attachments.

    The file has none of their bytes afterwards, and none of the pages that were removed before:
    SQLite never moves a row of the table of attachments, which grows at its end only, the table of
    pages is written anew, and what is freed is overwritten. Backups and snapshots of the file
    system are not erased. Raises ``StorageError``: ``storage.locked`` while a process still reads
    the old bytes; the caller tries again later.
    """

    def empty(rows: Connection) -> tuple[int, bool]:
        removed = sum(rows.raw.execute(_ERASE, (index,)).rowcount for index in indices)
        rows.write_anew("page")
        rows.commit()
        return removed, rows.cut()

    engine = FileEngine(path)
    try:
        removed, is_cut = engine.write(empty)
    finally:
        engine.close()
    if not is_cut:
        message = (
            f"{path} is being read: what is erased may stand in its -wal file still; try again"
        )
        raise StorageError(message, code="storage.locked")
    return removed
