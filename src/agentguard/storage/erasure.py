"""Erases the attachments of entries in place, so that the file has none of their bytes.

SQLite never moves a row of the table of attachments (``sqlite.py`` says why), so no old copy of a
row remains in the file. Backups and snapshots of the file system are not erased.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import sqlite
from agentguard.storage.owned_lock import SQLITE_LOCK

_EMPTY: Final = (
    "UPDATE attachments SET commitment = '', salt = x'', data = x''"  # noqa: S608  of a constant
    f" WHERE idx = ? AND NOT {sqlite.ERASED}"
)


def erase(state: Path, shard: int, indices: Iterable[int]) -> int:
    """Empty all attachments of these entries, with their salts; return the number of attachments.

    The shard's writer may write meanwhile. Raises ``StorageError``: ``storage.locked`` while a
    process still reads the old bytes; the caller tries again later.
    """
    path = sqlite.shard_path(state, shard)
    sqlite.require_file(path)
    if sqlite.was_inherited(path):
        message = f"this process is a fork of one that has {path} open: erase in another"
        raise StorageError(message, code="storage.locked")
    with (
        SQLITE_LOCK,
        sqlite.errors(path),
        closing(sqlite.connect(path)) as connection,
    ):
        connection.execute("BEGIN IMMEDIATE")
        removed = 0
        for index in indices:
            removed += connection.execute(_EMPTY, (index,)).rowcount
        connection.execute("COMMIT")
        # the write-ahead log still has the old pages
        (busy, *_pages) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        message = (
            f"{path} is being read: what is erased may stand in its -wal file still; try again"
        )
        raise StorageError(message, code="storage.locked")
    return removed
