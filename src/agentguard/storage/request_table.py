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

from agentguard.errors import StorageError
from agentguard.visible import written_out

MatchState = Literal["both", "differs", "refused", "agent_only", "receiver_only"]
"""What both logs together say of a request."""

ReceiptState = Literal["unverified", "valid", "invalid"]
"""Whether the signature of a receipt holds; ``unverified`` where nobody has named the keys."""

_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE sent (
    sha256 BLOB, nth INTEGER, idx INTEGER, parts BLOB, reason TEXT,
    PRIMARY KEY (sha256, nth)
) STRICT, WITHOUT ROWID;
CREATE TABLE received (
    sha256 BLOB, nth INTEGER, idx INTEGER, parts BLOB, reason TEXT,
    PRIMARY KEY (sha256, nth)
) STRICT, WITHOUT ROWID;
CREATE TABLE receipts (
    sha256 BLOB PRIMARY KEY, idx INTEGER, state TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE refused (sha256 BLOB PRIMARY KEY, idx INTEGER) STRICT, WITHOUT ROWID;
CREATE VIEW requests AS
SELECT 'agent' AS side, CASE
        WHEN received.sha256 IS NOT NULL AND received.parts = sent.parts THEN 'both'
        WHEN received.sha256 IS NOT NULL THEN 'differs'
        WHEN refused.sha256 IS NULL THEN 'agent_only'
        -- a server signs answers to accepted requests alone
        WHEN receipts.state = 'valid' THEN 'differs'
        ELSE 'refused'
    END AS match, sent.idx AS agent_idx,
    coalesce(received.idx, refused.idx) AS receiver_idx,
    receipts.idx, receipts.state, sent.reason AS reason
FROM sent
LEFT JOIN receipts ON receipts.sha256 = sent.sha256
LEFT JOIN received ON received.sha256 = sent.sha256 AND received.nth = sent.nth
LEFT JOIN refused ON refused.sha256 = sent.sha256
UNION ALL
SELECT 'receiver', 'receiver_only', NULL, received.idx,
    NULL, NULL, received.reason
FROM received
LEFT JOIN sent ON sent.sha256 = received.sha256 AND sent.nth = received.nth
WHERE sent.sha256 IS NULL;
"""

_INSERT: Final = {
    "sent": "INSERT INTO sent SELECT ?1, count(*), ?2, ?3, ?4 FROM sent WHERE sha256 = ?1",
    "received": (
        "INSERT INTO received SELECT ?1, count(*), ?2, ?3, ?4 FROM received WHERE sha256 = ?1"
    ),
    # the first counts: a thief may send one proof without end
    "refused": "INSERT OR IGNORE INTO refused VALUES (?, ?)",
    # one that does not verify is never hidden behind another
    "receipts": (
        "INSERT INTO receipts VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE"
        " SET (idx, state) = (?2, ?3) WHERE ?3 = 'invalid' AND state <> 'invalid'"
    ),
}

_MATCHES: Final = """
SELECT * FROM requests WHERE match IN ('both', 'differs') OR reason IS NULL
ORDER BY side, agent_idx, receiver_idx
"""

_LEFT_OUT: Final = """
SELECT reason, count(*) FROM requests
WHERE match NOT IN ('both', 'differs') AND reason IS NOT NULL GROUP BY reason
"""


class Match(NamedTuple):
    """A request, with the indices of its entries; None for a log that has none.

    The index in the receiver's log is that of the entry ``received`` or, in the state ``refused``,
    of the first entry ``refused``. ``receipt`` is that of the receiver's receipt in the
    agent's log, and ``receipt_state`` says whether the receipt's signature holds.
    """

    state: MatchState
    at_agent: int | None
    at_receiver: int | None
    receipt: int | None
    receipt_state: ReceiptState | None


class RequestTable:
    """The requests of an agent's log and of a receiver's log, by the digests of their proofs.

    A context manager; the end of the block removes the temporary file. The methods raise
    ``StorageError``.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)  # "": a temporary file
        with _errors():
            self._connection.executescript(_SCHEMA)

    def add_sent(self, sha256: str, index: int, parts: bytes, *, reason: str | None) -> None:
        """Add a request of the agent's log.

        ``sha256`` (hex) is the digest of the proof. ``parts`` stands for all that both logs say of
        a request: the bytes are compared. A request with a ``reason`` is left out of the result if
        the receiver's log does not have the request.
        """
        self._add("sent", sha256, index, parts, reason)

    def add_received(self, sha256: str, index: int, parts: bytes, *, reason: str | None) -> None:
        """Add an accepted request of the receiver's log; the arguments are as in ``add_sent``."""
        self._add("received", sha256, index, parts, reason)

    def add_receipt(self, sha256: str, index: int, state: ReceiptState) -> None:
        """Add a receipt that the agent's log has of a request."""
        self._add("receipts", sha256, index, state)

    def add_refused(self, sha256: str, index: int) -> None:
        """Add a refused request of the receiver's log."""
        self._add("refused", sha256, index)

    def _add(self, table: str, sha256: str, index: int, *more: bytes | str | None) -> None:
        with _errors():
            self._connection.execute(_INSERT[table], (bytes.fromhex(sha256), index, *more))

    def matches(self) -> Iterator[Match]:
        """Yield the requests in the order of the agent's log, then those of the receiver alone.

        A proof that the receiver has accepted twice is a request of the receiver alone, the second
        time.
        """
        with _errors():
            for _side, *match, _reason in self._connection.execute(_MATCHES):
                yield Match._make(match)

    def left_out(self) -> dict[str, int]:
        """Return by the reason how many requests are left out of ``matches``."""
        with _errors():
            return dict(self._connection.execute(_LEFT_OUT).fetchall())

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
