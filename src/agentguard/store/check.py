"""Finds what is damaged in a store: the file, and each row that is not as the head covers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.entry import LOG
from agentguard.audit.map import EMPTY_ROOT, Cache, Fetch, Map
from agentguard.audit.merkle import CompactRange
from agentguard.errors import DecodeError, StorageError
from agentguard.store import tree
from agentguard.store.engine import IN_LIST, Query, Row, T


class Read(Protocol):
    """Reads one moment of a database, as ``Engine.read`` does."""

    def __call__(self, work: Callable[[Query], T]) -> T:
        """Return what ``work`` returns whose queries see one moment."""


_PART: Final = 1000
_LISTED: Final = 10
_INTEGRITY: Final = f"PRAGMA integrity_check({_LISTED})"

HEAD: Final = "SELECT note, peaks FROM head WHERE log = ?"
_ENTRIES: Final = (
    "SELECT idx, leaf, body FROM entry WHERE log = ? AND idx >= ? AND idx < ? ORDER BY idx LIMIT ?"
)
_COUNTS: Final = (
    "SELECT (SELECT count(*) FROM head), (SELECT count(*) FROM entry), (SELECT count(*) FROM tree),"
    " (SELECT count(*) FROM map)"
)
_STRAYS: Final = (
    "SELECT DISTINCT idx FROM attachment AS one WHERE NOT EXISTS ("  # noqa: S608  of a constant
    f"SELECT 1 FROM entry WHERE entry.log = one.log AND entry.idx = one.idx) LIMIT {_LISTED}"
)
LEAVES: Final = "SELECT leaf FROM entry WHERE log = ? AND idx >= ? AND idx < ? ORDER BY idx"
_TREE: Final = (
    "SELECT hash FROM tree WHERE log = ? AND level = ? AND idx >= ? AND idx < ? ORDER BY idx"
)
_NODES: Final = f"SELECT address, node FROM map WHERE log = ? AND address {IN_LIST}"  # noqa: S608


class _DamageError(Exception):
    """What is damaged, in words: one line or several."""


class _Overview(NamedTuple):
    head: heads.Head
    peaks: bytes
    strays: list[int]
    rows: Row
    nodes: int


def problems(read: Read) -> Iterator[str]:
    """Yield in words what is not as the head covers it, and what no head covers.

    Of each sort it is the first, or the first ten. Nobody has verified the head itself. Each
    ``read`` sees one moment. Raises ``StorageError`` for a file that can't be read.
    """
    try:
        head, peaks, strays, rows, nodes = read(_overview)
        for index in strays:
            yield f"an attachment is beside an entry {index}, which is not there"
        grown, stored = CompactRange(), 0
        while grown.size < head.size:
            stored += read(partial(_grow, grown, head.size))
    except _DamageError as damage:
        yield from map(str, damage.args)
        return
    if grown.root() != head.root:
        yield "the entries are not those that the head covers"
    elif grown.encode() != peaks:
        yield "the peaks beside the head are not those of its tree"
    elif rows != (1, head.size, stored, nodes):
        yield "there are rows that no signed head covers"


def _overview(query: Query) -> _Overview:
    """Read all but the entries, with the number of the map's nodes that the head covers."""
    try:
        note, peaks = query(HEAD, (LOG,))[0]
        head = heads.parse(note)
    except (DecodeError, IndexError) as error:
        raise _DamageError(f"the head can't be read: {error}") from error
    lines = [line for (text,) in query(_INTEGRITY, ()) for line in str(text).split("\n")]
    damaged = [line for line in lines if line != "ok" and not line.startswith("***")]
    if damaged:  # to count the rows of a damaged file may never end
        raise _DamageError(*damaged)
    (rows,), strays = query(_COUNTS, ()), [index for (index,) in query(_STRAYS, ())]
    nodes = Map(head.map_root, fetching(query), Cache()).nodes()
    try:
        number = sum(1 for _node in nodes) - (head.map_root == EMPTY_ROOT)
    except StorageError as error:
        raise _DamageError(str(error)) from error
    return _Overview(head, peaks, strays, rows, number)


def _grow(grown: CompactRange, size: int, query: Query) -> int:
    """Grow a tree over the next entries; return the number of its stored hashes."""
    completed: list[tree.Completed] = []
    rows = query(_ENTRIES, (LOG, grown.size, size, _PART))
    for index, leaf, body in rows:
        if index != grown.size or merkle.leaf_hash(bytes(body)) != leaf:
            raise _DamageError(f"the entry {grown.size} is not the one beside its hash")
        grown.append(bytes(leaf), completed)
    if not rows:
        raise _DamageError(f"the entry {grown.size} is not there")
    stored, look = list(tree.stored(completed)), hashes(query)
    for level, index, digest in stored:
        if look(level, index, index + 1) != [digest]:
            what = f"the hash {index} at the level {level} of the log's tree is another one"
            raise _DamageError(what)
    return len(stored)


def hashes(query: Query) -> tree.Hashes:
    """Return what reads stored hashes of the log's tree, for proofs."""

    def look(level: int, first: int, last: int) -> list[bytes]:
        rows = (
            query(_TREE, (LOG, level, first, last)) if level else query(LEAVES, (LOG, first, last))
        )
        require_types(rows, bytes)
        return [found for (found,) in rows]

    return look


def fetching(query: Query) -> Fetch:
    """Return what reads nodes of the map."""

    def fetch(addresses: list[str]) -> dict[str, bytes]:
        rows = query(_NODES, (LOG, addresses))
        require_types(rows, str, bytes)
        return dict(rows)

    return fetch


def require_types(rows: Sequence[Row], *types: type) -> None:
    """Raise ``StorageError`` for a row whose first values are not of these types.

    Whoever writes the file writes other ones past its schema.
    """
    if any((*map(type, row[: len(types)]),) != types for row in rows):
        message = "a row of the log has values of other types: keep a copy, and restore a backup"
        raise StorageError(message, code="storage.corrupt")


def require_order(indices: Sequence[int]) -> None:
    """Raise ``StorageError`` for rows that do not come in their order.

    There may be a row without end, where a page of it is in its tree more than once.
    """
    if any(type(index) is not int for index in indices) or any(
        one >= other for one, other in pairwise(indices)
    ):
        message = "rows of the log are not in their order: keep a copy, and restore a backup"
        raise StorageError(message, code="storage.corrupt")
