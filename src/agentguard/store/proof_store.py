"""``ProofStore``: used proofs and received chains, in one SQLite file.

Many workers share the file. A proof is used up once its row is durable. A row goes when no
receiver would accept the proof any more. The file also has the latest end of a removed proof, so
that a clock that is set back brings no removed proof to life.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, NamedTuple

from agentguard.errors import ProofError, StorageError
from agentguard.storage import files, fork, lock, sqlite
from agentguard.storage.owned_lock import OwnedLock
from agentguard.store import sqlite as engines
from agentguard.store.engine import T

MAX_PROOFS: Final = 1_000_000
"""The most unexpired proofs that a store has by default; a full store refuses each further one."""

MAX_CHAINS: Final = 4_096
"""The most chains that a store has by default: those that came last."""

_REMOVED_AT_ONCE: Final = 1_000
_SCHEMA: Final = """
CREATE TABLE proofs (
    jkt TEXT NOT NULL, jti TEXT NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (jkt, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX proofs_by_end ON proofs (expires_at);
CREATE TABLE removal (
    only INTEGER PRIMARY KEY CHECK (only = 1), until INTEGER NOT NULL, proofs INTEGER NOT NULL
) STRICT;
CREATE TABLE chains (
    sha256 TEXT PRIMARY KEY, body BLOB NOT NULL, expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX chains_by_end ON chains (expires_at);
"""
_FORMAT: Final = sqlite.Format(0x41475031, 1, _SCHEMA)  # "AGP1"


class KeptChain(NamedTuple):
    """A verified chain, its digest (``Chain.sha256``) and its end in seconds since the epoch."""

    sha256: str
    chain: bytes
    expires_at: int


class ProofStore:
    """The used proofs and the received chains of a receiver.

    ``path`` is the SQLite file, which is made where it is missing, in a folder that is there. The
    file is on a local disk. ``max_proofs`` and ``max_chains`` bound the rows. The methods may be
    called from any thread, and after a fork on both sides. An open store whose file is removed or
    replaced refuses everything until ``close``: a worker with the old file and one with a new file
    would each accept the same proof. Raises ``ProofError`` (``proof.unavailable``).
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
        self._engine = engines.FileEngine(self._path, form=_FORMAT)
        self._lock = OwnedLock("the used proofs were written")
        weakref.finalize(self, self._engine.close)  # nobody has to close a store
        _STORES.add(self)
        self._in_file(lambda: self._engine.read(lambda _query: None))

    def use(
        self, jkt: str, jti: str, *, expires_at: int, at: int, keeps: KeptChain | None = None
    ) -> None:
        """Use up the proof ``jti`` of the key ``jkt``, durably; times are seconds of the epoch.

        ``keeps`` is a chain to keep in the same transaction, as ``keep_chain`` does. Raises
        ``ProofError``: ``proof.used`` for a proof that was used before, ``proof.expired`` for one
        whose row may be gone, ``proof.unavailable`` for a full or broken store.
        """

        def use_up(connection: Connection) -> None:
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

        self._commit(use_up)

    def chain(self, sha256: str) -> bytes | None:
        """Return the chain with a digest, None where it is not there.

        Raises ``ProofError`` (``proof.unavailable``).
        """
        statement = "SELECT body FROM chains WHERE sha256 = ?"
        rows = self._in_file(lambda: self._engine.read(lambda query: query(statement, (sha256,))))
        return bytes(rows[0][0]) if rows else None

    def keep_chain(self, sha256: str, chain: bytes, *, expires_at: int, at: int) -> None:
        """Keep a verified chain until ``expires_at``; times are seconds since the epoch.

        The store keeps the last ``max_chains`` chains that came: an agent that sends chains without
        end keeps nobody else's chain out. A chain that comes again keeps its place, so that one
        chain, sent without end, takes no place of another. Raises ``ProofError``
        (``proof.unavailable``).
        """
        kept = KeptChain(sha256, chain, expires_at)
        self._commit(lambda rows: _keep(rows, kept, at=at, most=self._max_chains))

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock.held():
            self._engine.close()

    def _commit(self, work: Callable[[Connection], None]) -> None:
        """Do ``work`` as one durable transaction, of all threads one at a time."""

        def write(rows: engines.Connection) -> None:
            work(rows.raw)
            rows.commit()

        self._in_file(lambda: self._engine.write(write))

    def _in_file(self, work: Callable[[], T]) -> T:
        """Do ``work`` while no other thread uses the file, which is made where it is missing."""
        try:
            with self._lock.held():
                if not self._engine.is_open:
                    self._make()
                return work()
        except StorageError as error:
            raise _unavailable(str(error)) from error

    def _make(self) -> None:
        with lock.acquire(self._path.with_name(f"{self._path.name}-lock")):  # as other workers do
            if not files.exists(self._path):
                sqlite.make(self._path, _FORMAT, "INSERT INTO removal VALUES (1, ?, ?)", (0, 0))

    def before_fork(self) -> None:
        """Close the file."""
        self._lock.acquire()
        self._engine.disconnect()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    after_fork_in_child = after_fork_in_parent


_STORES: Final = fork.AtFork(fork.Stage.PROOFS)


def _removal(connection: Connection) -> tuple[int, int]:
    row: Any = connection.execute("SELECT until, proofs FROM removal").fetchone()
    if row is None:
        raise _unavailable("it lacks a row that it always has")
    return row[0], row[1]


def _keep(connection: Connection, kept: KeptChain, *, at: int, most: int) -> None:
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


def _unavailable(problem: str) -> ProofError:
    message = f"the store of used proofs can't be used: {problem}"
    return ProofError(message, code="proof.unavailable")
