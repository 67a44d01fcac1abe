"""Pages: data beside the log, by name, that are replaced and removed; no head covers them.

A commit writes pages with its entries, or pages alone. Whoever writes the database writes pages:
each reader says by itself what makes a page count (``sealed_pages.py``, and the digest of a request
in the map). Requests and their answers have a table of their own: they have arguments that the log
may not keep, so what is removed there leaves no copy in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentguard.audit.entry import LOG
from agentguard.store import check
from agentguard.store.engine import Query, Writing

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
_LIST: Final = "SELECT name, data FROM {} WHERE log = ? AND name > ? AND name < ? ORDER BY name"


def read(query: Query, name: str) -> bytes | None:
    """Return a page; raises ``StorageError``."""
    rows = query(_READ.format(_table(name)), (LOG, name))
    check.require_types(rows, bytes)
    return rows[0][0] if rows else None


def listed(query: Query, folder: str) -> dict[str, bytes]:
    """Return the pages of a folder; raises ``StorageError``."""
    between = f"{folder}/", f"{folder}0"  # in ASCII, 0 comes after the slash
    rows = query(_LIST.format(_table(folder)), (LOG, *between))
    check.require_types(rows, str, bytes)
    return dict(rows)


def write(written: Mapping[str, bytes | None], rows: Writing) -> None:
    """Write pages, and remove those that are None."""
    for table in {_table(name) for name in written}:
        pages = [(name, page) for name, page in written.items() if _table(name) == table]
        rows.write(_PUT.format(table), [(LOG, name, one) for name, one in pages if one is not None])
        removed = [(LOG, name) for name, page in pages if page is None]
        rows.write(_DROP.format(table), removed)
        if removed and table == "request":
            rows.forget_requests()


def _table(name: str) -> str:
    return "request" if name.split("/", 1)[0] in _OF_REQUESTS else "page"
