"""Erases what stands beside an entry, in place, so that its bytes are gone from the file.

It relies on what ``sqlite.py`` says of the table of attachments: each row has stood in one place of
the file alone. Copies that others have made (backups, snapshots of the file system) are out of its
reach.
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

    The shard's writer may be at work meanwhile. Raises ``StorageError``; ``storage.locked`` where
    somebody reads the old bytes still, and then they are gone once this is done again.
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
        # the write-ahead log holds the pages as they were when they were written
        (busy, *_pages) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        message = (
            f"{path} is being read: what is erased may stand in its -wal file still; try again"
        )
        raise StorageError(message, code="storage.locked")
    return removed
