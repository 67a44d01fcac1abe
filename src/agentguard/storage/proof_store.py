"""``ProofStore``: used proofs and received chains, in one SQLite file.

Many workers share the file. A proof is used up once its row is durable. A row goes when no
receiver would accept the proof any more. The file also has the latest end of a removed proof, so
that a clock that is set back brings no removed proof to life.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.errors import ProofError
from agentguard.storage import files, fork, sqlite

MAX_PROOFS: Final = 1_000_000
"""The most unexpired proofs that a store has by default; a full store refuses each further one."""

MAX_CHAINS: Final = 4_096
"""The most chains that a store has by default: those that came last."""

PATIENCE: Final = 5.0
"""Seconds that a worker waits for another worker's transaction."""

_APPLICATION: Final = 1095192625  # "AGP1", as the schema has it
_REMOVED_AT_ONCE: Final = 1_000
_SCHEMA: Final = (
    """CREATE TABLE proofs (
        jkt TEXT NOT NULL, jti TEXT NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (jkt, jti)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX proofs_by_end ON proofs (expires_at)",
    """CREATE TABLE removal (
        only INTEGER PRIMARY KEY CHECK (only = 1), until INTEGER NOT NULL, proofs INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE chains (
        sha256 TEXT PRIMARY KEY, body BLOB NOT NULL, expires_at INTEGER NOT NULL
    ) STRICT""",
    "INSERT INTO removal VALUES (1, 0, 0)",
    "PRAGMA application_id = 1095192625",
)
_CHAINS_BY_END: Final = "CREATE INDEX IF NOT EXISTS chains_by_end ON chains (expires_at)"
"""Spares a look at each chain for each new one; an earlier version made files without the index."""


class KeptChain(NamedTuple):
    """A verified chain, its digest (``Chain.sha256``) and its end in seconds since the epoch."""

    sha256: str
    chain: bytes
    expires_at: int


class ProofStore:
    """The used proofs and the received chains of a receiver.

    ``path`` is the SQLite file, which is made where it is missing, in a folder that is there. The
    file is on a local disk. ``max_proofs`` and ``max_chains`` bound the rows. The methods may be
    called from any thread. A forked process may use the store unless its parent has used the store
    before the fork. An open store whose file is removed or replaced refuses everything until
    ``close``: a worker with the old file and one with a new file would each accept the same proof.
    Raises ``ProofError`` (``proof.unavailable``).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_proofs: int = MAX_PROOFS,
        max_chains: int = MAX_CHAINS,
    ) -> None:
        self._path = Path(path).absolute()  # a server may change its folder afterwards
        self._max_proofs = max_proofs
        self._max_chains = max_chains
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        fork.in_each_child(self._leave_to_parent)
        with self._transaction():
            pass
        self.close()  # so that a server may fork its workers after this

    def use(
        self, jkt: str, jti: str, *, expires_at: int, at: int, keeps: KeptChain | None = None
    ) -> None:
        """Use up the proof ``jti`` of the key ``jkt``, durably; times are seconds of the epoch.

        ``keeps`` is a chain to keep in the same transaction, as ``keep_chain`` does. Raises
        ``ProofError``: ``proof.used`` for a proof that was used before, ``proof.expired`` for one
        whose row may be gone, ``proof.unavailable`` for a full or broken store.
        """
        with self._transaction() as connection:
            until, proofs = _removal(connection)
            if expires_at <= until:
                message = "the proof ends before a proof that was removed: the clock was set back"
                raise ProofError(message, code="proof.expired")
            added = connection.execute(
                "INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", (jkt, jti, expires_at)
            ).rowcount
            if added != 1:
                raise ProofError("the proof was used before", code="proof.used")
            ends = connection.execute(
                "SELECT jkt, jti, expires_at FROM proofs WHERE expires_at <= ? ORDER BY expires_at"
                " LIMIT ?",
                (at, _REMOVED_AT_ONCE),
            ).fetchall()
            connection.executemany(
                "DELETE FROM proofs WHERE jkt = ? AND jti = ?", [row[:2] for row in ends]
            )
            proofs += 1 - len(ends)
            if proofs > self._max_proofs:
                raise _unavailable("it has as many unexpired proofs as it may have")
            until = max([until, *(row[2] for row in ends)])
            connection.execute("UPDATE removal SET until = ?, proofs = ?", (until, proofs))
            if keeps is not None:
                _keep(connection, keeps, at=at, most=self._max_chains)

    def chain(self, sha256: str) -> bytes | None:
        """Return the chain with a digest, None where it is not there.

        Raises ``ProofError`` (``proof.unavailable``).
        """
        with self._transaction(writes=False) as connection:
            row = connection.execute(
                "SELECT body FROM chains WHERE sha256 = ?", (sha256,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def keep_chain(self, sha256: str, chain: bytes, *, expires_at: int, at: int) -> None:
        """Keep a verified chain until ``expires_at``; times are seconds since the epoch.

        The store keeps the last ``max_chains`` chains that came: an agent that sends chains without
        end keeps nobody else's chain out. A chain that comes again keeps its place, so that one
        chain, sent without end, takes no place of another. Raises ``ProofError``
        (``proof.unavailable``).
        """
        with self._transaction() as connection:
            _keep(connection, KeptChain(sha256, chain, expires_at), at=at, most=self._max_chains)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        """Close the file with the end of the object: nobody has to close a store."""
        with suppress(AttributeError):  # of an object whose making has failed
            self._drop()

    @contextmanager
    def _transaction(self, *, writes: bool = True) -> Iterator[sqlite3.Connection]:
        """Run statements as one durable transaction, of all threads one at a time."""
        with self._lock:
            try:
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                try:
                    yield connection
                except BaseException:
                    _roll_back(connection)
                    raise
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._drop()
                raise _unavailable(str(error)) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _opened(self._path)
            self._file = _identity(self._path)
        elif _identity(self._path) != self._file:
            raise _unavailable("its file was removed or replaced: restart all workers")
        return self._connection

    def _leave_to_parent(self) -> None:
        """Use the parent's connection no more, in a forked process.

        SQLite believes that the process holds the locks of its parent: two processes could use one
        proof (``sqlite.keep_inherited``). Another thread of the parent may have held the lock.
        """
        self._lock = threading.Lock()
        if self._connection is not None:
            sqlite.keep_inherited(self._path, self._connection)
            self._connection = None

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _opened(path: Path) -> sqlite3.Connection:
    if sqlite.was_inherited(path):
        raise _unavailable("it was used before this process was forked: use it in the workers only")
    if files.exists(path) and not path.is_file():
        raise _unavailable("it is no regular file")
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=PATIENCE
    )
    try:
        _is_new(connection)  # another program's database stays as it is
        path.chmod(0o600)
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        _require_schema(connection)
    except OSError as error:
        connection.close()
        raise _unavailable(str(error.strerror)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_new(connection: sqlite3.Connection) -> bool:
    # One statement reads both: another worker may make the tables at this moment.
    ((application, tables),) = connection.execute(
        "SELECT (SELECT application_id FROM pragma_application_id), count(*) FROM sqlite_schema"
    )
    if application != _APPLICATION and (application or tables):
        raise _unavailable("it is the database of another program")
    return bool(application != _APPLICATION)


def _require_schema(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file; raises ``ProofError`` for another program's database."""
    connection.execute("BEGIN IMMEDIATE")  # another worker may make the tables at this moment
    try:
        if _is_new(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
        connection.execute(_CHAINS_BY_END)
    except BaseException:
        _roll_back(connection)
        raise
    connection.execute("COMMIT")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have SQLite write a log ahead; SQLite itself does not wait for a worker that asks too."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _removal(connection: sqlite3.Connection) -> tuple[int, int]:
    row: Any = connection.execute("SELECT until, proofs FROM removal").fetchone()
    if row is None:
        raise _unavailable("it lacks a row that it always has")
    return row[0], row[1]


def _keep(connection: sqlite3.Connection, kept: KeptChain, *, at: int, most: int) -> None:
    """Keep a chain, remove chains that have ended, and leave the last ``most`` chains."""
    connection.execute(
        "DELETE FROM chains WHERE rowid IN"
        " (SELECT rowid FROM chains WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (at, _REMOVED_AT_ONCE),
    )
    connection.execute(
        "INSERT INTO chains VALUES (?, ?, ?) ON CONFLICT (sha256)"
        " DO UPDATE SET (body, expires_at) = (excluded.body, excluded.expires_at)",
        kept,
    )
    # a new row has the highest rowid: the difference tells how many chains came later
    connection.execute(
        "DELETE FROM chains WHERE rowid <= (SELECT max(rowid) FROM chains) - ?", (most,)
    )


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.execute("ROLLBACK")


def _unavailable(problem: str) -> ProofError:
    message = f"the store of used proofs can't be used: {problem}"
    return ProofError(message, code="proof.unavailable")
