"""The pages of a state as an editor sees them, who has the file of the database and no key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def pages(state: Path, folder: str) -> dict[str, bytes]:
    """Return the pages of a folder, by name."""
    with closing(sqlite3.connect(state / "log.sqlite")) as raw:
        rows = raw.execute("SELECT name, data FROM page WHERE name GLOB ?", (f"{folder}/*",))
        return dict(rows.fetchall())


def put(state: Path, name: str, data: bytes | None) -> None:
    """Write a page, or remove it (None)."""
    with closing(sqlite3.connect(state / "log.sqlite")) as raw, raw:
        raw.execute("DELETE FROM page WHERE name = ?", (name,))
        if data is not None:
            raw.execute("INSERT INTO page VALUES (0, ?, ?)", (name, data))


def put_text(state: Path, name: str) -> None:
    """Write a text in the place of a page's bytes, past the schema."""
    with closing(sqlite3.connect(state / "log.sqlite")) as raw:
        (schema,) = raw.execute("SELECT sql FROM sqlite_schema WHERE name = 'page'").fetchone()
        for sql in (schema.replace(" STRICT", ""), schema):
            raw.execute("PRAGMA writable_schema = ON")
            raw.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'page'", (sql,))
            raw.commit()
            raw.execute("PRAGMA writable_schema = RESET")
            if sql != schema:
                raw.execute("UPDATE page SET data = 'text' WHERE name = ?", (name,))
                raw.commit()
