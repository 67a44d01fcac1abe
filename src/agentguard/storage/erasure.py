"""Erases the attachments of entries in place, so that their bytes are gone from the file.

Each row of the table of attachments has only ever stood in one place of the file (``sqlite.py``
says why). Copies of the file, such as backups or snapshots of the file system, are not erased.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import sqlite
from agentguard.storage.reentry import SQLITE_LOCK

_EMPTY: Final = (
    "UPDATE attachments SET commitment = '', salt = x'', data = x''"  # noqa: S608  of a constant
    f" WHERE idx = ? AND NOT {sqlite.ERASED}"
)


def erase(state: Path, shard: int, indices: Iterable[int]) -> int:
    """Empty all attachments of these entries, with their salts; return how many there were.

    The shard's writer may write meanwhile. Raises ``StorageError``; ``storage.locked`` where a
    process still reads the old bytes: call this again then.
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
