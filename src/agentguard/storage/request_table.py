"""``RequestTable``: joins the requests in the logs of two sides, in a temporary SQLite database.

SQLite keeps the rows in a temporary file of its own, so that logs of any size fit. The file goes
with the table. ``cli/audit/match.py`` fills the table and reads the result.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from agentguard.audit.entry import LogPlace
from agentguard.errors import StorageError
from agentguard.visible import written_out

MatchState = Literal["both", "differs", "refused", "agent_only", "receiver_only"]
"""What both logs together say of a request."""

_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE sent (
    sha256 BLOB, nth INTEGER, shard INTEGER, idx INTEGER, parts BLOB, counts INTEGER,
    PRIMARY KEY (sha256, nth)
) STRICT, WITHOUT ROWID;
CREATE TABLE received (
    sha256 BLOB, nth INTEGER, shard INTEGER, idx INTEGER, parts BLOB, counts INTEGER,
    PRIMARY KEY (sha256, nth)
) STRICT, WITHOUT ROWID;
CREATE TABLE receipts (sha256 BLOB PRIMARY KEY, shard INTEGER, idx INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE refused (sha256 BLOB PRIMARY KEY, shard INTEGER, idx INTEGER) STRICT, WITHOUT ROWID;
"""

_INSERT: Final = {
    "sent": "INSERT INTO sent SELECT ?1, count(*), ?2, ?3, ?4, ?5 FROM sent WHERE sha256 = ?1",
    "received": (
        "INSERT INTO received SELECT ?1, count(*), ?2, ?3, ?4, ?5 FROM received WHERE sha256 = ?1"
    ),
    # the first counts: a thief may send one proof without end
    "refused": "INSERT OR IGNORE INTO refused VALUES (?, ?, ?)",
    "receipts": "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)",
}

_OF_THE_AGENT: Final = """
SELECT CASE
        WHEN received.sha256 IS NOT NULL AND received.parts = sent.parts THEN 'both'
        WHEN received.sha256 IS NOT NULL THEN 'differs'
        WHEN refused.sha256 IS NOT NULL THEN 'refused'
        ELSE 'agent_only'
    END AS state, sent.shard, sent.idx, coalesce(received.shard, refused.shard),
    coalesce(received.idx, refused.idx), receipts.shard, receipts.idx
FROM sent
LEFT JOIN receipts ON receipts.sha256 = sent.sha256
LEFT JOIN received ON received.sha256 = sent.sha256 AND received.nth = sent.nth
LEFT JOIN refused ON refused.sha256 = sent.sha256
WHERE state IN ('both', 'differs') OR sent.counts
ORDER BY sent.shard, sent.idx
"""

_OF_THE_RECEIVER: Final = """
SELECT 'receiver_only', NULL, NULL, received.shard, received.idx, NULL, NULL FROM received
LEFT JOIN sent ON sent.sha256 = received.sha256 AND sent.nth = received.nth
WHERE sent.sha256 IS NULL AND received.counts
ORDER BY received.shard, received.idx
"""

_STATEMENTS: Final = (_OF_THE_AGENT, _OF_THE_RECEIVER)


class Match(NamedTuple):
    """A request, with the places of its entries; None for a log that has none.

    The place in the receiver's log is that of the entry ``received`` or, in the state ``refused``,
    of the first entry ``refused``. ``receipt`` is the place of the receiver's receipt in the
    agent's log.
    """

    state: MatchState
    at_agent: LogPlace | None
    at_receiver: LogPlace | None
    receipt: LogPlace | None


class RequestTable:
    """The requests of an agent's log and of a receiver's log, by the digests of their proofs.

    A context manager; the end of the block removes the temporary file. The methods raise
    ``StorageError``.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)  # "": a temporary file
        with _errors():
            self._connection.executescript(_SCHEMA)

    def add_sent(self, sha256: str, place: LogPlace, parts: bytes, *, counts: bool) -> None:
        """Add a request of the agent's log.

        ``sha256`` (hex) is the digest of the proof. ``parts`` stands for all that both logs say of
        a request: the bytes are compared. A request that does not ``count`` is left out of the
        result if the receiver's log does not have the request.
        """
        self._add("sent", sha256, place, parts, counts)

    def add_received(self, sha256: str, place: LogPlace, parts: bytes, *, counts: bool) -> None:
        """Add an accepted request of the receiver's log; the arguments are as in ``add_sent``."""
        self._add("received", sha256, place, parts, counts)

    def add_receipt(self, sha256: str, place: LogPlace) -> None:
        """Add a receipt that the agent's log has of a request."""
        self._add("receipts", sha256, place)

    def add_refused(self, sha256: str, place: LogPlace) -> None:
        """Add a refused request of the receiver's log."""
        self._add("refused", sha256, place)

    def _add(self, table: str, sha256: str, place: LogPlace, *more: bytes | bool) -> None:
        with _errors():
            self._connection.execute(
                _INSERT[table], (bytes.fromhex(sha256), place.shard, place.index, *more)
            )

    def matches(self) -> Iterator[Match]:
        """Yield the requests in the order of the agent's log, then those of the receiver alone.

        A proof that the receiver has accepted twice is a request of the receiver alone, the second
        time.
        """
        with _errors():
            for statement in _STATEMENTS:
                for state, *numbers in self._connection.execute(statement):
                    yield Match(state, *(_place(*numbers[at : at + 2]) for at in (0, 2, 4)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        is_full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        message = f"the temporary table of requests failed ({written_out(str(error))})"
        if is_full:
            message = f"{message}: make room on the disk of the temporary files"
        raise StorageError(message, code="storage.full" if is_full else "storage.failed") from error


def _place(shard: int | None, index: int | None) -> LogPlace | None:
    return None if shard is None or index is None else LogPlace(shard, index)
