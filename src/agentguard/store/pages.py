"""Pages: data beside the log, by name, that are replaced and removed; no head covers them.

A commit writes pages with its entries, or pages alone. Whoever writes the database writes pages:
each reader says by itself what makes a page count (``sealed_pages.py``, and the digest of a request
in the map). Requests and their answers have a table of their own: they have arguments that the log
may not keep, so what is removed there leaves no copy in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from agentguard.audit.entry import LOG
from agentguard.store import check
from agentguard.store.engine import Query

MAX_PAGE: Final = 15 << 20
"""The longest page, in bytes."""

REQUESTS: Final = "requests"
ANSWERS: Final = "answers"
ANNOUNCED: Final = "announced"

_OF_REQUESTS: Final = (REQUESTS, ANSWERS, ANNOUNCED)
_PUT: Final = (
    "INSERT INTO {} VALUES (?, ?, ?) ON CONFLICT (log, name) DO UPDATE SET data = excluded.data"
)
_DROP: Final = "DELETE FROM {} WHERE log = ? AND name = ?"
_READ: Final = "SELECT data FROM {} WHERE log = ? AND name = ?"
_LIST: Final = "SELECT name, data FROM {} WHERE log = ? AND name > ? AND name < ? ORDER BY rowid"


class SqlPages(NamedTuple):
    """The pages at the moment of a query."""

    query: Query

    def page(self, name: str) -> bytes | None:
        """Return a page; raises ``StorageError``."""
        rows = self.query(_READ.format(_table(name)), (LOG, name))
        check.require_types(rows, bytes)
        return rows[0][0] if rows else None

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages of a folder, the oldest first; raises ``StorageError``."""
        between = f"{folder}/", f"{folder}0"  # in ASCII, 0 comes after the slash
        rows = self.query(_LIST.format(_table(folder)), (LOG, *between))
        check.require_types(rows, str, bytes)
        return dict(rows)


class MemoryPages(dict[str, bytes]):
    """The pages of a store in memory."""

    def page(self, name: str) -> bytes | None:
        """Return a page; None for none."""
        return self.get(name)

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages of a folder, the oldest first."""
        prefix = f"{folder}/"
        return {one: page for one, page in self.items() if one.startswith(prefix) and one != prefix}


def statements(
    written: Mapping[str, bytes | None],
) -> Iterator[tuple[str, list[tuple[object, ...]]]]:
    """Yield what writes pages, and removes those that are None: statements, each with its rows."""
    for table in sorted({_table(name) for name in written}):
        pages = [(name, page) for name, page in written.items() if _table(name) == table]
        yield _PUT.format(table), [(LOG, name, one) for name, one in pages if one is not None]
        yield _DROP.format(table), [(LOG, name) for name, page in pages if page is None]


def removes_requests(written: Mapping[str, bytes | None]) -> bool:
    """Whether a page goes of which no copy may be left."""
    return any(page is None and _table(name) == "request" for name, page in written.items())


def _table(name: str) -> str:
    return "request" if name.split("/", 1)[0] in _OF_REQUESTS else "page"
