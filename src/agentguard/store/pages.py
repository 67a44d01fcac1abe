"""Pages: data beside the log, by name, that are replaced and removed; no head covers them.

A commit writes pages with its entries, or pages alone. Whoever writes the database writes pages:
each reader says by itself what makes a page count (``sealed_pages.py``, and the digest of a request
in the map).
"""

from __future__ import annotations

from typing import Final

from agentguard.audit.entry import LOG
from agentguard.store import check
from agentguard.store.engine import Query

MAX_PAGE: Final = 15 << 20
"""The longest page, in bytes."""

PUT: Final = (
    "INSERT INTO page VALUES (?, ?, ?) ON CONFLICT (log, name) DO UPDATE SET data = excluded.data"
)
DROP: Final = "DELETE FROM page WHERE log = ? AND name = ?"
_READ: Final = "SELECT data FROM page WHERE log = ? AND name = ?"
_LIST: Final = "SELECT name, data FROM page WHERE log = ? AND name > ? AND name < ? ORDER BY name"


def read(query: Query, name: str) -> bytes | None:
    """Return a page; raises ``StorageError``."""
    rows = query(_READ, (LOG, name))
    check.require_types(rows, bytes)
    return rows[0][0] if rows else None


def listed(query: Query, folder: str) -> dict[str, bytes]:
    """Return the pages of a folder; raises ``StorageError``."""
    rows = query(_LIST, (LOG, f"{folder}/", f"{folder}0"))  # in ASCII, 0 comes after the slash
    check.require_types(rows, str, bytes)
    return dict(rows)
