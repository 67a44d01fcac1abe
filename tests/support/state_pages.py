"""The pages of a state as an editor sees them, who has the file of the database and no key."""

# ruff: noqa: S608  the names of the tables are constants

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TABLES = ("page", "request")


class Page(NamedTuple):
    """A page of a state, or a folder of pages, by its name."""

    state: Path
    path: str

    def __truediv__(self, part: str) -> Page:
        return Page(self.state, f"{self.path}/{part}".removeprefix("/"))

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def table(self) -> str:
        kept = self.path.split("/", 1)[0] in ("requests", "answers", "announced")
        return "request" if kept else "page"

    def iterdir(self) -> list[Page]:
        """Return the pages below, in the order of their names."""
        pattern = f"{self.path}/*".removeprefix("/")
        names = [
            name
            for table in (TABLES if not self.path else (self.table,))
            for (name,) in _query(
                self.state, f"SELECT name FROM {table} WHERE name GLOB ?", pattern
            )
        ]
        return [Page(self.state, name) for name in sorted(names)]

    def exists(self) -> bool:
        return bool(self.iterdir()) or bool(self._rows())

    def read_bytes(self) -> bytes:
        ((data,),) = self._rows()
        return bytes(data)

    def _rows(self) -> list[tuple[Any]]:
        return _query(self.state, f"SELECT data FROM {self.table} WHERE name = ?", self.path)

    def write_bytes(self, data: bytes) -> None:
        self.unlink()
        with editing(self.state) as raw:
            raw.execute(f"INSERT INTO {self.table} VALUES (0, ?, ?)", (self.path, data))

    def unlink(self) -> None:
        with editing(self.state) as raw:
            raw.execute(f"DELETE FROM {self.table} WHERE name = ?", (self.path,))

    def write_text(self, text: str) -> None:
        """Write a text in the place of the bytes, past the schema."""
        named = f"type = 'table' AND name = '{self.table}'"
        with closing(sqlite3.connect(self.state / "log.sqlite")) as raw:
            (sql,) = raw.execute(f"SELECT sql FROM sqlite_schema WHERE {named}").fetchone()
            for schema in (sql.replace(" STRICT", ""), sql):
                raw.execute("PRAGMA writable_schema = ON")
                raw.execute(f"UPDATE sqlite_schema SET sql = ? WHERE {named}", (schema,))
                raw.commit()
                raw.execute("PRAGMA writable_schema = RESET")
                if schema != sql:
                    raw.execute(
                        f"UPDATE {self.table} SET data = ? WHERE name = ?", (text, self.path)
                    )
                    raw.commit()


@contextmanager
def editing(state: Path) -> Iterator[sqlite3.Connection]:
    """Edit the database of a state."""
    with closing(sqlite3.connect(state / "log.sqlite")) as raw, raw:
        yield raw


def _query(state: Path, statement: str, *values: str) -> list[tuple[Any]]:
    with closing(sqlite3.connect(state / "log.sqlite")) as raw:
        return raw.execute(statement, values).fetchall()


def pages(state: Path, folder: str) -> dict[str, bytes]:
    """Return the pages of a folder, or all (""), by their names."""
    return {page.path: page.read_bytes() for page in Page(state, folder).iterdir()}


def put_back(state: Path, kept: dict[str, bytes]) -> None:
    """Have these pages alone in the state."""
    for page in Page(state, "").iterdir():
        page.unlink()
    for name, data in kept.items():
        Page(state, name).write_bytes(data)
