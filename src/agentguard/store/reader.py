"""``StoredLog``: reads the log in a database, without the lock of its writers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from agentguard.audit import head as heads
from agentguard.audit.entry import LOG, Attachment, StoredEntry
from agentguard.audit.summary import Search, Summary
from agentguard.errors import StorageError
from agentguard.storage import fork
from agentguard.store import check, sqlite, tree
from agentguard.store.engine import Engine, Query, Row, T
from agentguard.store.sqlite import ERASED, FileEngine

_AT_ONCE: Final = 16
"""The most entries of one query; few, because each may be as long as SQLite allows."""

_MOST: Final = 256

_COLUMNS: Final = ", ".join(Summary._fields)
_ENTRIES: Final = "SELECT idx, body, {} FROM entry WHERE log = ? AND idx > ? ORDER BY idx LIMIT ?"
_BACKWARDS: Final = (
    "SELECT idx, body FROM entry WHERE log = ? AND idx > ? AND idx < ? ORDER BY idx DESC LIMIT ?"
)
_ATTACHMENTS: Final = (
    "SELECT idx, role, commitment, salt, data FROM attachment"  # noqa: S608  of constants
    f" WHERE log = ? AND idx >= ? AND idx <= ? AND NOT {ERASED} ORDER BY idx, role"
)
_SEARCH: Final = (
    "SELECT idx FROM entry WHERE log = ? AND idx > ? AND idx < ? AND {} ORDER BY idx {} LIMIT ?"
)
_CONDITIONS: Final = {
    "agent": "(agent = ? OR instr(agent, '/agent/' || ? || '/') > 0)",
    "since": "at >= ?",
    "until": "at < ?",
}
_NAMED: Final = "kind = 'call' AND invocation_id >= ? AND invocation_id < ? || char(1114111)"
_TRACES: Final = """SELECT DISTINCT trace_id FROM entry
    WHERE log = ? AND trace_id >= ? AND trace_id < ? || char(1114111) ORDER BY trace_id"""
_UNSETTLED: Final = """kind = 'call' AND decision IN ('allow', 'observe') AND NOT EXISTS (
    SELECT 1 FROM entry AS ended
    WHERE ended.log = 0 AND ended.invocation_id = entry.invocation_id AND ended.kind = 'outcome'
)"""
# The index leads to the first call of each id, so that no id has to be kept.
_SHARED_IDS: Final = """SELECT idx, before FROM (
    SELECT idx, (
        SELECT first.idx FROM entry AS first
        WHERE first.log = 0 AND first.invocation_id = entry.invocation_id AND first.kind = 'call'
        ORDER BY first.idx LIMIT 1
    ) AS before FROM entry WHERE log = ? AND kind = 'call' AND invocation_id IS NOT NULL
) WHERE before < idx ORDER BY idx LIMIT 100"""

_END: Final = 2**63 - 1


class StoredLog:
    """Reads the log in an engine's database; what it returns is unverified.

    ``of`` reads the log of a state directory. Threads may share a reader.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()
        if engine.is_shared:
            _READERS.add(self)
            weakref.finalize(self, engine.close)

    @classmethod
    def of(cls, state: Path) -> StoredLog:
        """Return a reader of a state's log; raises ``StorageError`` (``storage.missing``).

        Whatever else is wrong is an error of the first read, so that a verification reports it.
        """
        path = sqlite.path_in(state)
        reader = cls(FileEngine(path, writes=False))
        try:
            reader._row()
        except StorageError as error:
            if error.code == "storage.missing":
                raise
        return reader

    def size(self) -> int:
        """How many entries the head says that there are; raises ``DecodeError`` without a head."""
        return heads.parse(self.head()).size

    def head(self) -> bytes | None:
        """The signed note of the head."""
        row = self._row()
        return None if row is None else row[0]

    def entries(
        self, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""
        if newest_first:
            yield from self._backwards(after)
            return
        statement = _ENTRIES.format("NULL")
        for rows in self._pages(statement, after):
            for index, body, _none in rows:
                yield index, body

    def _backwards(self, after: int) -> Iterator[tuple[int, bytes]]:
        before = _END
        while rows := self._query(_BACKWARDS, (LOG, after, before, _AT_ONCE)):
            check.require_types(rows, int, bytes)
            check.require_order([index for index, _body in reversed(rows)])
            yield from rows
            before = rows[-1][0]

    def stored(self) -> Iterator[StoredEntry]:
        """Yield the entries with their summaries and attachments."""
        for rows in self._pages(_ENTRIES.format(_COLUMNS), -1):
            yield from self._with_attachments(rows)

    def entry(self, index: int) -> StoredEntry | None:
        """Return one entry with its summary and attachments; None where there is none."""
        rows = self._query(_ENTRIES.format(_COLUMNS), (LOG, index - 1, 1))
        check.require_types(rows, int, bytes)
        if not rows or rows[0][0] != index:
            return None
        return next(self._with_attachments(rows))

    def _with_attachments(self, rows: Sequence[Row]) -> Iterator[StoredEntry]:
        found = self._query(_ATTACHMENTS, (LOG, rows[0][0], rows[-1][0]))
        check.require_types(found, int, str, str, bytes, bytes)
        beside: dict[int, list[Attachment]] = {}
        for index, *attachment in found:
            beside.setdefault(index, []).append(Attachment._make(attachment))
        for index, body, *columns in rows:
            yield StoredEntry(index, body, Summary._make(columns), beside.get(index, []))

    def _pages(self, statement: str, after: int) -> Iterator[list[Row]]:
        while rows := self._query(statement, (LOG, after, _AT_ONCE)):
            check.require_types(rows, int, bytes)
            check.require_order([row[0] for row in rows])
            yield rows
            after = rows[-1][0]

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Return the proof of an entry in the first ``size`` entries, from stored hashes."""
        return self._read(lambda query: tree.inclusion_proof(index, size, check.hashes(query)))

    def consistency_proof(self, size1: int, size2: int) -> list[bytes]:
        """Return the proof that one tree extends another, from stored hashes."""
        return self._read(lambda query: tree.consistency_proof(size1, size2, check.hashes(query)))

    def shared_ids(self) -> Iterator[tuple[int, int]]:
        """Yield the calls with the id of an earlier call, each with the first one's index."""
        yield from self._query(_SHARED_IDS, (LOG,))

    def search(
        self, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield the indices of the entries whose summaries match."""
        conditions, values = ["TRUE"], list[str]()
        for name, value in search._asdict().items():
            if value is not None:
                condition = _CONDITIONS.get(name, f"{name} = ?")
                conditions.append(condition)
                values += [value] * condition.count("?")
        # of the names of Search alone
        return self._indices(" AND ".join(conditions), values, after, newest_first=newest_first)

    def named(self, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""
        return self._indices(_NAMED, [prefix, prefix])

    def traces(self, prefix: str) -> Iterator[str]:
        """Yield, sorted, the ids of the traces of entries that begin with ``prefix``."""
        rows = self._query(_TRACES, (LOG, prefix, prefix)) if _is_text(prefix) else ()
        return (trace_id for (trace_id,) in rows)

    def unsettled(self, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls to which no outcome belongs, by the summaries."""
        return self._indices(_UNSETTLED, [], newest_first=newest_first)

    def _indices(
        self, condition: str, values: Sequence[str], after: int = -1, *, newest_first: bool = False
    ) -> Iterator[int]:
        if not all(map(_is_text, values)):  # what is no text is in no entry
            return
        statement = _SEARCH.format(condition, "DESC" if newest_first else "")
        before = _END
        while rows := self._query(statement, (LOG, after, before, *values, _MOST)):
            found = [index for (index,) in rows]
            check.require_order(found[::-1] if newest_first else found)
            yield from found
            if newest_first:
                before = found[-1]
            else:
                after = found[-1]

    def damage(self) -> Iterator[str]:
        """Yield in words what is damaged, and not all of it (``check.problems``)."""
        return check.problems(self._read)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        with self._lock:
            self._engine.close()

    def _row(self) -> Row | None:
        rows = self._query(check.HEAD, (LOG,))
        return rows[0] if rows else None

    def _query(self, statement: str, values: Sequence[object]) -> list[Row]:
        return self._read(lambda query: query(statement, values))

    def _read(self, work: Callable[[Query], T]) -> T:
        with self._lock:
            return self._engine.read(work)

    def before_fork(self) -> None:
        """Close the file."""
        self._lock.acquire()
        self._engine.close()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    after_fork_in_child = after_fork_in_parent


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_READERS: Final = fork.AtFork(fork.Stage.READERS)
