"""The narrow side of a database: what the store asks of an engine, and its tables.

Statements are written for SQLite, with ``?`` for a value; ``IN_LIST`` stands for a list. Every
primary key begins with the number of a log, so that a domain can have several later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from agentguard.audit.log import PageReader

# The index ends in idx: a search by the id of a call, in the order of the log, would otherwise read
# the whole log by its primary key.
SCHEMA: Final = """
CREATE TABLE head (
    log INTEGER PRIMARY KEY, note BLOB NOT NULL, peaks BLOB NOT NULL
) STRICT;
CREATE TABLE entry (
    log INTEGER NOT NULL, idx INTEGER NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL,
    invocation_id TEXT, agent TEXT, principal TEXT, tool TEXT, decision TEXT, status TEXT,
    task_id TEXT, trace_id TEXT, leaf BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (log, idx)
) STRICT;
CREATE INDEX entry_by_invocation ON entry (log, invocation_id, idx)
    WHERE invocation_id IS NOT NULL;
CREATE TABLE attachment (
    log INTEGER NOT NULL, idx INTEGER NOT NULL, role TEXT NOT NULL, commitment TEXT NOT NULL,
    salt BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY (log, idx, role)
) STRICT;
CREATE TABLE tree (
    log INTEGER NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (log, level, idx)
) STRICT, WITHOUT ROWID;
CREATE TABLE map (
    log INTEGER NOT NULL, address TEXT NOT NULL, node BLOB NOT NULL, PRIMARY KEY (log, address)
) STRICT, WITHOUT ROWID;
CREATE TABLE ending (
    log INTEGER NOT NULL, ends INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY (log, ends, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE page (
    log INTEGER NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (log, name)
) STRICT;
CREATE TABLE request (
    log INTEGER NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (log, name)
) STRICT;
"""

IN_LIST: Final = "IN (SELECT value FROM json_each(?))"

T = TypeVar("T")
Row = tuple[Any, ...]

MakeHead = Callable[[], tuple[bytes, bytes]]
"""Returns the head's signed note, and the peaks of its tree."""

Query = Callable[[str, Sequence[object]], list[Row]]
"""Runs one statement on one moment of the database; a list among the values is for ``IN_LIST``."""


class Writing(Protocol):
    """A transaction of the database, which no other writer's can come into."""

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads."""

    def write(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each of the rows."""

    def write_head(self, make: MakeHead) -> bytes:
        """Replace the head by what ``make`` returns, and return its note.

        Where nobody else reads the database, it is made before somebody reads it; the note that is
        returned is empty then.
        """

    def write_pages(self, written: Mapping[str, bytes | None]) -> None:
        """Write pages (``pages.py``), and remove those that are None.

        No copy of a request or an answer that is removed is left after the commit.
        """

    def touch(self) -> None:
        """Write what is there already, where there is room for more entries."""

    def commit(self) -> None:
        """Make durable what was written. Where this raises, it may be durable all the same."""


class Engine(Protocol):
    """A database with the tables of ``SCHEMA``; each method raises ``StorageError``.

    The store calls ``write`` from one thread at a time, and ``read`` too. They take functions: an
    interrupt amid the Python code of a ``with`` would leave a lock held, or a transaction open.
    """

    def write(self, work: Callable[[Writing], T]) -> T:
        """Return what ``work`` returns in a transaction under the lock of all writers.

        Without a commit, nothing changes.
        """

    def read(self, work: Callable[[Query], T]) -> T:
        """Return what ``work`` returns whose queries see one moment."""

    def query(self, statement: str, values: Sequence[object]) -> list[Row]:
        """Run one statement that reads what is committed by now; from a thread of ``read``'s."""

    def pages_at(self, query: Query) -> PageReader:
        """Return what reads the pages at the moment of a query."""

    def close(self) -> None:
        """Close all connections; the next use opens them again."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes have the database, as they can't have one in memory."""
