"""Reads the log in a state directory, shard by shard, without a lease on any shard."""

from __future__ import annotations

import sqlite3
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.audit.checkpoint import End
from agentguard.audit.entry import Attachment, StoredEntry
from agentguard.audit.summary import Search, Summary
from agentguard.storage import fork, registry_file, sqlite
from agentguard.storage.owned_lock import SQLITE_LOCK


class StateReader:
    """A ``LogReader`` of a state directory; what the reader returns is unverified.

    A state without any shard is an error (``storage.missing``), unless the state ``may_be_empty``:
    then its verification says what is missing.
    """

    def __init__(self, state: Path, *, may_be_empty: bool = False) -> None:
        self._state = state
        self._open: dict[int, sqlite3.Connection] = {}  # the one used last stands last
        self._walks: Counter[int] = Counter()  # that are not done yet, by shard
        if not may_be_empty and not sqlite.numbers(state):
            sqlite.require_file(sqlite.shard_path(state, 0))
        weakref.finalize(self, _close, self._open)
        _READERS.add(self)

    def registry(self) -> bytes | None:
        """The issuer's list of the shards."""
        return registry_file.read(self._state)

    def shards(self) -> Sequence[int]:
        """The numbers of the shards whose files are there."""
        return sqlite.numbers(self._state)

    def entries(
        self, shard: int, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""
        statement = _ordered(_ENTRIES.format("WHERE idx > ?"), newest_first=newest_first)
        return self._rows(shard, _ENTRY, statement, after, newest_first=newest_first)

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        """Yield the signed notes."""
        statement = "SELECT size, note FROM checkpoints ORDER BY size"
        return (row[1] for row in self._rows(shard, _NOTE, statement))

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:
        """The signed note of one size, or the newest."""
        statement = (
            "SELECT size, note FROM checkpoints WHERE size = coalesce(?, size)"
            " ORDER BY size DESC LIMIT 1"
        )
        return next((row[1] for row in self._rows(shard, _NOTE, statement, size)), None)

    def end(self, shard: int) -> End | None:
        """Return the end from which the shard's writer would continue, if there is one."""
        rows = self._rows(shard, _END, "SELECT origin, size, range FROM shard")
        return next((End(*row) for row in rows), None)

    def stored(self, shard: int) -> Iterator[StoredEntry]:
        """Yield the entries with their summaries and attachments, and no row without an entry."""
        return self._stored(shard, None)

    def entry(self, shard: int, index: int) -> StoredEntry | None:
        """Return one entry with its summary and attachments; None where there is none."""
        return next(self._stored(shard, index), None)

    def _stored(self, shard: int, index: int | None) -> Iterator[StoredEntry]:
        """Read the three tables side by side: a look-up for each entry takes far longer."""
        where, and_, parameters = (
            ("WHERE idx = ?", "AND idx = ?", (index,)) if index is not None else ("", "", ())
        )
        about = self._rows(shard, _SUMMARY, _SUMMARIES.format(where), *parameters)
        beside = self._rows(shard, _ATTACHMENT, _ATTACHMENTS.format(and_), *parameters)
        row, attachment = next(about, None), next(beside, None)
        for at, body in self._rows(shard, _ENTRY, _ENTRIES.format(where), *parameters):
            while row is not None and row[0] < at:
                row = next(about, None)
            summary = Summary._make(row[1:]) if row is not None and row[0] == at else None
            attachments: list[Attachment] = []
            while attachment is not None and attachment[0] <= at:
                if attachment[0] == at:
                    attachments.append(Attachment._make(attachment[1:]))
                attachment = next(beside, None)
            yield StoredEntry(at, body, summary, attachments)

    @contextmanager
    def snapshot(self, shard: int) -> Iterator[None]:
        """Let the reads in a ``with`` block see one shard as of one moment."""
        path = sqlite.shard_path(self._state, shard)
        with SQLITE_LOCK, sqlite.errors(path):
            connection = self._connection(shard)
            connection.execute("BEGIN")
        try:
            yield
        finally:
            with SQLITE_LOCK, sqlite.errors(path):
                connection.rollback()

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:
        """Yield the first hundred rows of each table without an entry: ``(index, table)``."""
        without_gaps = any(self._indices(shard, _WITHOUT_GAPS))
        statement = _STRAYS_OUTSIDE if without_gaps else _STRAYS
        for table in ("summaries", "attachments"):
            for index in self._indices(shard, statement.format(table)):
                yield index, table

    def shared_ids(self, shard: int) -> Iterator[tuple[int, int]]:
        """Yield the calls with the id of an earlier call, each with the first one's index."""
        return self._rows(shard, _PAIR, _SHARED_IDS)

    def damage(self, shard: int) -> Iterator[str]:
        """Yield what SQLite finds wrong with the file, the first ten.

        SQLite compares the index with its table, too. While SQLite looks (some seconds for a
        million entries) no guard of this process can write.
        """
        rows = self._rows(shard, _TEXT, f"PRAGMA integrity_check({_FINDINGS})")
        lines = (line for (text,) in rows for line in text.split("\n"))
        findings = (line for line in lines if line != "ok" and not line.startswith("***"))
        return islice(findings, _FINDINGS)

    def search(
        self, shard: int, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield the indices of the entries whose summaries match."""
        conditions, parameters = ["idx > ?"], [after]
        for name, value in search._asdict().items():
            if value is not None:
                condition = _CONDITIONS.get(name, f"{name} = ?")
                conditions.append(condition)
                parameters += [value] * condition.count("?")
        # of the names of Search alone
        statement = _SEARCH.format(" AND ".join(conditions))
        return self._indices(shard, statement, *parameters, newest_first=newest_first)

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""
        return self._indices(shard, _SEARCH.format(_NAMED), prefix, prefix)

    def traces(self, shard: int, prefix: str) -> Iterator[str]:
        """Yield, sorted, the ids of the traces of entries that begin with ``prefix``."""
        return (text for (text,) in self._rows(shard, _TEXT, _TRACES, prefix, prefix))

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls to which no outcome belongs, by the summaries."""
        statement = _SEARCH.format(_UNSETTLED)
        return self._indices(shard, statement, newest_first=newest_first)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        _close(self._open)

    def _connection(self, shard: int) -> sqlite3.Connection:
        connection = self._open.pop(shard, None)
        if connection is None:
            self._close_idle()
            connection = _connect(sqlite.shard_path(self._state, shard))
        self._open[shard] = connection
        return connection

    def _close_idle(self) -> None:
        """Keep few files open: a log may have more shards than a process may have descriptors."""
        oldest = list(self._open.items())
        for shard, connection in oldest[: max(0, len(oldest) + 1 - _KEPT)]:
            if not self._walks[shard] and not connection.in_transaction:
                self._open.pop(shard).close()

    def _indices(
        self, shard: int, statement: str, *parameters: Any, newest_first: bool = False
    ) -> Iterator[int]:
        try:
            "".join(map(str, parameters)).encode()
        except UnicodeEncodeError:  # what is no text stands in no entry
            return iter(())
        statement = _ordered(statement, newest_first=newest_first)
        rows = self._rows(shard, _INDEX, statement, *parameters, newest_first=newest_first)
        return (row[0] for row in rows)

    def _rows(
        self,
        shard: int,
        shape: _Shape,
        statement: str,
        *parameters: Any,
        newest_first: bool = False,
    ) -> Iterator[Any]:
        """Yield rows of the right types, in their order.

        A file that was changed may hold others; and one row without end, where a page of it stands
        in its tree more than once.
        """
        batches = self._batches(shard, shape, statement, *parameters, newest_first=newest_first)
        return chain.from_iterable(batches)

    def _batches(
        self,
        shard: int,
        shape: _Shape,
        statement: str,
        *parameters: Any,
        newest_first: bool,
    ) -> Iterator[list[Any]]:
        """Yield the rows of ``_rows``, some at a time."""
        path = sqlite.shard_path(self._state, shard)
        last: Any = None
        with sqlite.errors(path):
            with SQLITE_LOCK:
                cursor = self._connection(shard).execute(statement, parameters)
                self._walks[shard] += 1
            try:
                damage: sqlite3.Error | None = None
                while damage is None:
                    rows, damage = _fetch(cursor, shape.ahead)
                    for count, row in enumerate(rows):
                        if not shape.fits(row):
                            yield rows[:count]
                            what = "a row of it does not have the types of a log"
                            raise sqlite.damaged(path, what)
                        key = row[: shape.key]
                        if last is not None and not (key < last if newest_first else last < key):
                            yield rows[:count]
                            raise sqlite.damaged(path, "rows of it are not in their order")
                        last = key if shape.key else None
                    yield rows
                    if len(rows) < shape.ahead:
                        break
                if damage is not None:
                    raise damage
            finally:
                with SQLITE_LOCK:  # to drop it is to reset its statement
                    del cursor
                    self._walks[shard] -= 1

    def _forked(self) -> None:
        """In a fork, set the parent's connections aside; a later read opens the files again."""
        while self._open:
            shard, connection = self._open.popitem()
            sqlite.keep_inherited(sqlite.shard_path(self._state, shard), connection)


def _fetch(cursor: sqlite3.Cursor, most: int) -> tuple[list[Any], sqlite3.Error | None]:
    """Return the next rows, ``most`` at most, and the error of the row behind them, if any."""
    rows: list[Any] = []
    with SQLITE_LOCK:
        try:
            rows.extend(islice(cursor, most))  # keeps the rows before an error
        except sqlite3.Error as error:
            return rows, error
    return rows, None


_ENTRIES: Final = "SELECT idx, body FROM entries {} ORDER BY idx"
_SUMMARIES: Final = "SELECT * FROM summaries {} ORDER BY idx"
_ATTACHMENTS: Final = (
    "SELECT idx, role, commitment, salt, data FROM attachments"  # noqa: S608  of a constant
    f" WHERE NOT {sqlite.ERASED} {{}} ORDER BY idx, role"
)

_SEARCH: Final = "SELECT idx FROM summaries WHERE {} ORDER BY idx"

_NAMED: Final = "kind = 'call' AND invocation_id >= ? AND invocation_id < ? || char(1114111)"
_TRACES: Final = """SELECT DISTINCT trace_id FROM summaries
    WHERE trace_id >= ? AND trace_id < ? || char(1114111) ORDER BY trace_id"""
_UNSETTLED: Final = """kind = 'call' AND decision IN ('allow', 'observe') AND NOT EXISTS (
    SELECT 1 FROM summaries AS ended JOIN entries ON entries.idx = ended.idx
    WHERE ended.invocation_id = summaries.invocation_id AND ended.kind = 'outcome'
)"""
_STRAYS: Final = (
    "SELECT DISTINCT idx FROM {} WHERE idx NOT IN (SELECT idx FROM entries) ORDER BY idx LIMIT 100"
)
# Where no index is missing, a stray lies outside the range, and no row has to be looked up.
_WITHOUT_GAPS: Final = (
    "SELECT 1 WHERE (SELECT min(idx) = 0 AND max(idx) = count(*) - 1 FROM entries)"
)
_STRAYS_OUTSIDE: Final = (
    "SELECT DISTINCT idx FROM {} WHERE idx < 0 OR idx > (SELECT max(idx) FROM entries)"
    " ORDER BY idx LIMIT 100"
)
# The index leads to the first call of each id, so that no id has to be kept.
_SHARED_IDS: Final = """SELECT idx, before FROM (
    SELECT idx, (
        SELECT first.idx FROM summaries AS first
        WHERE first.invocation_id = summaries.invocation_id AND first.kind = 'call'
        ORDER BY first.idx LIMIT 1
    ) AS before FROM summaries WHERE kind = 'call' AND invocation_id IS NOT NULL
) WHERE before < idx ORDER BY idx LIMIT 100"""
_FINDINGS: Final = 10

_KEPT: Final = 64
"""Shards whose files stay open while others are read; each takes three descriptors."""

_CONDITIONS: Final = {
    "agent": "(agent = ? OR instr(agent, '/agent/' || ? || '/') > 0)",
    "since": "at >= ?",
    "until": "at < ?",
}


def _ordered(statement: str, *, newest_first: bool) -> str:
    return f"{statement} DESC" if newest_first else statement


class _Shape(NamedTuple):
    """The rows of a statement: their types, and how many columns are the key of their order.

    ``ahead`` is how many rows are fetched at once.
    """

    key: int
    fits: Callable[[Any], bool]
    ahead: int = 1


def _of(*types: type) -> Callable[[Any], bool]:
    return lambda row: tuple(map(type, row)) == types


def _is_summary(row: tuple[Any, ...]) -> bool:
    return tuple(map(type, row[:3])) == (int, str, str) and _TEXT_OR_NULL.issuperset(
        map(type, row[3:])
    )


_TEXT_OR_NULL: Final = frozenset({str, type(None)})

_AHEAD: Final = 8
"""Rows of a walk that are fetched at once; few, because each may be as long as SQLite allows."""

_ENTRY: Final = _Shape(1, _of(int, bytes), _AHEAD)
_NOTE: Final = _Shape(1, _of(int, bytes))
_INDEX: Final = _Shape(1, _of(int))
_PAIR: Final = _Shape(1, _of(int, int))
_SUMMARY: Final = _Shape(1, _is_summary, _AHEAD)
_ATTACHMENT: Final = _Shape(2, _of(int, str, str, bytes, bytes), _AHEAD)
_END: Final = _Shape(0, _of(str, int, bytes))
_TEXT: Final = _Shape(0, _of(str))


def _connect(path: Path) -> sqlite3.Connection:
    with SQLITE_LOCK, sqlite.errors(path):
        return sqlite.connect_to_read(path, sqlite.SHARD)


def _close(connections: dict[int, sqlite3.Connection]) -> None:
    with SQLITE_LOCK:
        while connections:
            connections.popitem()[1].close()


def _after_fork() -> None:
    for reader in list(_READERS):
        reader._forked()  # noqa: SLF001  a reader and this file are one unit


_READERS: weakref.WeakSet[StateReader] = weakref.WeakSet()
fork.at_fork(fork.Stage.READERS, in_child=_after_fork)
