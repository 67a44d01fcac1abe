"""The store in one SQLite file, or in memory.

One process writes at a time: it holds the lock of a file beside the database. Never
open the database's file in another way in this process: closing it would drop SQLite's own locks.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agentguard.storage import lock
from agentguard.storage import sqlite as shared
from agentguard.storage.owned_lock import OwnedLock
from agentguard.store.engine import SCHEMA, Query, Row

FORMAT: Final = shared.Format(0x41475331, 1, SCHEMA)  # "AGS1"


def make(path: Path, note: bytes) -> None:
    """Make the file of an empty store, whole or not at all, with its first head."""
    shared.make(path, FORMAT, "INSERT INTO head VALUES (0, ?, x'')", (note,))


class Connection:
    """One connection of SQLite: the queries of a moment, or a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.raw = connection

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads."""
        given = [json.dumps(one) if isinstance(one, list) else one for one in values]
        return self.raw.execute(statement, given).fetchall()

    def write(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each of the rows."""
        self.raw.executemany(statement, rows)

    def commit(self) -> None:
        """Commit, with the disk waited for (``synchronous=FULL``)."""
        self.raw.execute("COMMIT")

    @contextmanager
    def transaction(self, begin: str) -> Iterator[Connection]:
        """Begin; roll back whatever is not committed."""
        try:
            self._roll_back()  # what an interrupt has left
            self.raw.execute(begin)
            yield self
        finally:
            with suppress(sqlite3.Error):  # the first error is the one to report
                self._roll_back()

    def _roll_back(self) -> None:
        if self.raw.in_transaction:
            self.raw.execute("ROLLBACK")


class MemoryEngine:
    """An ``Engine`` in the memory of one process; a fork has none of it."""

    outlives_fork = False

    def __init__(self, note: bytes) -> None:
        connection = sqlite3.connect(":memory:", **shared.OPTIONS)
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO head VALUES (0, ?, x'')", (note,))
        self._connection = Connection(connection)
        self._lock = OwnedLock("the store was read or written")  # there is one connection for both

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Return a transaction."""
        path = Path(":memory:")
        with (
            self._lock.held(),
            shared.errors(path),
            self._connection.transaction("BEGIN") as begun,
        ):
            yield begun

    @contextmanager
    def reading(self) -> Iterator[Query]:
        """Return queries of one moment."""
        with self.writing() as begun:
            yield begun.query

    def close(self) -> None:
        """Leave all as it is: what is in memory goes with this object."""


class FileEngine:
    """An ``Engine`` in one file on a local disk."""

    outlives_fork = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(f"{path.name}-lock")
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._opened: tuple[int, int] | None = None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Return a transaction under the lock.

        Raises ``StorageError``: ``storage.locked`` where another process holds the lock too long,
        ``storage.corrupt`` where another file is in the place of the database.
        """
        with shared.errors(self._path), lock.held(self._lock_path):
            if self._writer is None:
                self._writer = self._connected()
            self._require_same_file()
            with self._writer.transaction("BEGIN IMMEDIATE") as begun:
                yield begun

    @contextmanager
    def reading(self) -> Iterator[Query]:
        """Return queries of one moment."""
        with shared.errors(self._path):
            if self._reader is None:
                self._reader = self._connected()
            self._require_same_file()
            with self._reader.transaction("BEGIN") as begun:
                yield begun.query

    def close(self) -> None:
        """Close the connections."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.raw.close()
        self._writer = self._reader = self._opened = None

    def _connected(self) -> Connection:
        connection = Connection(shared.connect(self._path, FORMAT))
        self._opened = self._opened or self._at_path()
        return connection

    def _require_same_file(self) -> None:
        if self._at_path() != self._opened:
            raise shared.damaged(self._path, "another file has taken its place")

    def _at_path(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_dev, status.st_ino
