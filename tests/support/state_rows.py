"""What somebody who can write a state makes of its databases: each table, column and kind of row.

The tables are those that a file has, and a row is of the kind of the entry that it belongs to. A
body is changed as bytes: its hash covers them, whatever they say (``test_store_editor.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import state_mutations
from state_mutations import DATABASE, Mutation, UnwritableError

Statement = tuple[str, Sequence[Any]]
Statements = Sequence[Statement]

Key = tuple[Any, ...]


class Table(NamedTuple):
    """A table as a file holds it: its columns, its primary key, and its rows by that key."""

    name: str
    columns: Mapping[str, str]
    """Each column with its type."""
    key: tuple[str, ...]
    rows: Mapping[Key, tuple[Any, ...]]

    def updated(self, key: Key, values: Mapping[str, Any]) -> Statements:
        """Return what puts values in a row."""
        assigned = ", ".join(f"{name} = ?" for name in values)
        return [(f"UPDATE {self.name} SET {assigned}{self._where}", (*values.values(), *key))]  # noqa: S608  the file's own names

    def deleted(self, key: Key = ()) -> Statements:
        """Return what deletes a row, or without a key all of them."""
        return [(f"DELETE FROM {self.name}{self._where if key else ''}", key)]  # noqa: S608  as above

    def inserted(self, row: Sequence[Any]) -> Statements:
        marks = ", ".join("?" for _ in row)
        return [(f"INSERT OR REPLACE INTO {self.name} VALUES ({marks})", row)]  # noqa: S608  as above

    @property
    def _where(self) -> str:
        return f" WHERE {' AND '.join(f'{name} = ?' for name in self.key)}"

    def named(self, key: Key) -> dict[str, Any]:
        return dict(zip(self.columns, self.rows[key], strict=True))

    def beside(self, key: Key) -> dict[str, Any]:
        """Return the columns of a row that do not name it."""
        return {name: value for name, value in self.named(key).items() if name not in self.key}


def of_rows(
    base: Path, moments: Mapping[str, Path], chance: Random, *, since: Path | None = None
) -> Iterator[Mutation]:
    """Yield what can be done to tables, rows and columns; to what has come ``since``, if given."""
    for path in databases(base):
        here = tables(base / path)
        former = {moment: tables(then / path) for moment, then in moments.items()}
        known = tables(since / path) if since is not None else {}
        kinds = kinds_of_entries(here)
        for name, table in here.items():
            then = {moment: at[name] for moment, at in former.items() if name in at}
            old = known[name].rows if name in known else {}
            fresh = [key for key, row in table.rows.items() if old.get(key) != row]
            for kind, what, statements in _of_table(table, fresh, kinds, then, chance):
                yield Mutation(
                    f"{path} {name} {kind}", f"{path} {name} {what}", _executing(path, statements)
                )
        if since is None:
            yield from _of_schema(base, path)


def put_back(path: Path, before: Mapping[str, Table], written: Mapping[str, Table]) -> None:
    """Have the rows that were ``written`` be as they were ``before``, and leave all others alone.

    Of a row that somebody has changed since, as a guard changes the head, the cells are put back
    that nobody has changed since. A table that is not there any more, or has other columns, is
    left alone too.
    """
    now, statements = tables(path), list[Statement]()
    for name, table in before.items():
        if name not in now or now[name].columns != table.columns or name not in written:
            continue
        was, then, rows = table.rows, written[name].rows, now[name].rows
        theirs = {key for key in {*was, *then} if was.get(key) != then.get(key) == rows.get(key)}
        statements += [part for key in theirs for part in table.deleted(key)]
        statements += [part for key in theirs if key in was for part in table.inserted(was[key])]
        for key in ({*was} & {*then} & {*rows}) - theirs:
            cells = zip(table.columns, was[key], then[key], rows[key], strict=True)
            changed = {column: one for column, one, two, three in cells if one != two == three}
            statements += table.updated(key, changed) if changed else ()
    _executing(Path(), statements)(path)


def databases(base: Path) -> list[Path]:
    found = (path for path in state_mutations.paths(base) if (base / path).is_file())
    return [path for path in found if (base / path).read_bytes().startswith(DATABASE)]


def tables(path: Path) -> dict[str, Table]:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: _table(connection, name) for (name,) in names}


def _table(connection: sqlite3.Connection, name: str) -> Table:
    columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
    places = [at for at, *_names, in_key in columns if in_key] or range(len(columns))
    rows = connection.execute(f"SELECT * FROM {name}").fetchall()  # noqa: S608  as above
    return Table(
        name,
        {column[1]: column[2] for column in columns},
        tuple(columns[at][1] for at in places),
        {tuple(row[at] for at in places): row for row in rows},
    )


def kinds_of_entries(here: Mapping[str, Table]) -> dict[Key, str]:
    """Return the kind of each entry, by its place in the log."""
    return {key: here["entry"].named(key)["kind"] for key in here["entry"].rows}


Change = tuple[str, str, Statements]


def _of_table(
    table: Table,
    fresh: Sequence[Key],
    kinds: Mapping[Key, str],
    then: Mapping[str, Table],
    chance: Random,
) -> Iterator[Change]:
    if not table.rows:
        values = [{"INTEGER": 0, "TEXT": ""}.get(type_, b"") for type_ in table.columns.values()]
        yield "planted", "planted", table.inserted(values)
        return
    yield "emptied", "emptied", table.deleted()
    for moment, old in then.items():
        if old.rows != table.rows:
            back = [statement for row in old.rows.values() for statement in old.inserted(row)]
            what = f"as of '{moment}'"
            yield what, what, [*table.deleted(), *back]
    for key in fresh:
        of_entry = table.name in {"entry", "attachment"}
        kind = " ".join([kinds.get(key[:2], ""), *map(str, key[2:])]) if of_entry else ""
        for what, statements in _of_row(table, key, then, chance):
            yield f"{kind}: {what}", f"{key} ({kind}) {what}", statements


def _of_row(
    table: Table, key: Key, then: Mapping[str, Table], chance: Random
) -> Iterator[tuple[str, Statements]]:
    values, beside = table.named(key), table.beside(key)
    others = [other for other in table.rows if table.beside(other) != beside]
    yield "deleted", table.deleted(key)
    place = next(name for name in reversed(table.key) if isinstance(values[name], int))
    behind = max(table.named(other)[place] for other in table.rows) + 1
    for what, at in (("once more", behind), ("far behind", 1 << 40)):
        yield what, table.inserted([*{**values, place: at}.values()])
    yield "moved", table.updated(key, {place: behind})
    if others:
        other = chance.choice(others)
        theirs = table.beside(other)
        yield (
            "and another swapped",
            [*table.updated(key, theirs), *table.updated(other, beside)],
        )
        yield "in another's place", table.updated(other, beside)
        yield "is another's", table.updated(key, theirs)
    for moment, old in then.items():
        if key in old.rows and old.rows[key] != table.rows[key]:
            yield f"as of '{moment}'", table.updated(key, old.beside(key))
    for column, value in values.items():
        for what, changed in _of_value(table, column, value, chance):
            if type(changed) is not type(value) or changed != value:
                yield f"{column}{what}", table.updated(key, {column: changed})


def _of_value(table: Table, column: str, value: Any, chance: Random) -> Iterator[tuple[str, Any]]:
    there = [table.named(key)[column] for key in table.rows]
    others = [other for other in there if other != value and other is not None]
    yield " null", None
    if others:
        yield " another's", chance.choice(others)
    if isinstance(value, int):
        yield " one more", value + 1
        yield " one less", value - 1
        yield " negative", -value - 1
    elif isinstance(value, str):
        yield " no text", ""
        yield " a letter more", value + "x"
    elif isinstance(value, bytes):
        yield " empty", b""
        if value:
            place = chance.randrange(len(value))
            yield " a bit changed", value[:place] + bytes([value[place] ^ 4]) + value[place + 1 :]
            yield " cut short", value[:-1]


def _of_schema(base: Path, path: Path) -> Iterator[Mutation]:
    with closing(sqlite3.connect(base / path)) as connection:
        made = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
        marks = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("user_version", "application_id")
        }
    statements = {f"{type_} {name} dropped": f'DROP {type_} "{name}"' for type_, name in made}
    statements |= {
        f"{name} one more": f"PRAGMA {name} = {value + 1}" for name, value in marks.items()
    }
    statements["a table more"] = "CREATE TABLE more (idx INTEGER)"
    for type_, name in made:
        if type_ == "table":
            aside = f'ALTER TABLE "{name}" RENAME TO aside'
            statements[f"{name} is a view"] = f'{aside};CREATE VIEW "{name}" AS VALUES (1)'
    for what, statement in statements.items():
        parts = [(part, ()) for part in statement.split(";")]
        yield Mutation(f"{path} {what}", f"{path} {what}", _executing(path, parts))


def _executing(path: Path, statements: Statements) -> Callable[[Path], None]:
    def write(state: Path) -> None:
        try:
            try:
                _execute(state / path, statements)
            except sqlite3.IntegrityError:  # of the schema, which whoever writes the file changes
                with _loosened(state / path):
                    _execute(state / path, statements)
        except sqlite3.Error as error:
            raise UnwritableError(str(error)) from error

    return write


def _execute(path: Path, statements: Statements) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
        connection.commit()


@contextmanager
def _loosened(path: Path) -> Iterator[None]:
    """Have the tables take any value meanwhile, as a file does that was written without SQLite."""
    with closing(sqlite3.connect(path)) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        schema = dict(made.fetchall())
    loose = {
        name: sql.replace(" NOT NULL", "").replace(" STRICT,", "").replace(" STRICT", "")
        for name, sql in schema.items()
    }
    _rewrite(path, loose)
    try:
        yield
    finally:
        _rewrite(path, schema)


def _rewrite(path: Path, schema: Mapping[str, str]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        for name, sql in schema.items():
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
        connection.commit()
        connection.execute(f"PRAGMA schema_version = {version + 1}")
