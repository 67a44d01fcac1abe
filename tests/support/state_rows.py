"""What somebody who can write a state makes of its databases: each table, column and kind of row.

The tables are those that a file has, and a row is of the kind of the entry that it belongs to.
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

Statements = Sequence[tuple[str, Sequence[Any]]]


class Table(NamedTuple):
    """A table as a file holds it: its columns, and its rows by their ids."""

    name: str
    columns: tuple[str, ...]
    key: str
    rows: Mapping[int, tuple[Any, ...]]

    def updated(
        self, rowid: int, values: Mapping[str, Any], *, key: str | None = None
    ) -> Statements:
        """Return what puts values in a row, in all columns but its ``key``, which names it."""
        key = self.key if key is None else key
        named = {name: value for name, value in values.items() if name != key}
        assigned = ", ".join(f'"{name}" = ?' for name in named)
        return [(f"{self._update} SET {assigned} WHERE rowid = ?", (*named.values(), rowid))]

    @property
    def _update(self) -> str:
        return f'UPDATE "{self.name}"'

    def deleted(self, rowid: int | None = None) -> Statements:
        where, values = ("", ()) if rowid is None else (" WHERE rowid = ?", (rowid,))
        return [(f'DELETE FROM "{self.name}"{where}', values)]  # noqa: S608  the file's own name

    def inserted(self, values: Sequence[Any], rowid: int | None = None) -> Statements:
        columns = ("rowid", *self.columns) if rowid is not None else self.columns
        given = (rowid, *values) if rowid is not None else values
        named, marks = ", ".join(f'"{column}"' for column in columns), ", ".join("?" for _ in given)
        statement = f'INSERT OR REPLACE INTO "{self.name}" ({named}) VALUES ({marks})'  # noqa: S608  as above
        return [(statement, given)]

    def named(self, rowid: int) -> dict[str, Any]:
        return dict(zip(self.columns, self.rows[rowid], strict=True))


def of_rows(
    base: Path, moments: Mapping[str, Path], chance: Random, *, since: Path | None = None
) -> Iterator[Mutation]:
    """Yield what can be done to tables, rows and columns; to what has come ``since``, if given."""
    found = {path: tables(base / path) for path in databases(base)}
    former = {
        moment: {path: tables(then / path) for path in databases(then)}
        for moment, then in moments.items()
    }
    for path, here in found.items():
        kinds = kinds_of_entries(here)
        for table in here.values():
            there = [others[table.name] for at, others in found.items() if at != path]
            then = {
                moment: at[path][table.name]
                for moment, at in former.items()
                if table.name in at.get(path, {})
            }
            old = tables(since / path).get(table.name) if since is not None else None
            known = old.rows if old is not None else {}
            fresh = [rowid for rowid, row in table.rows.items() if known.get(rowid) != row]
            for kind, what, statements in _of_table(table, fresh, kinds, there, then, chance):
                family = f"{state_mutations.family(path)} {table.name}"
                yield Mutation(
                    f"{family} {kind}", f"{path} {table.name} {what}", _executing(path, statements)
                )
        if since is None:
            yield from _of_schema(base, path)


def put_back(path: Path, before: Mapping[str, Table], written: Mapping[str, Table]) -> None:
    """Have the rows that were ``written`` be as they were ``before``, and leave all others alone.

    Of a row that somebody has changed since, as a guard changes the row of its shard, the cells are
    put back that nobody has changed since. A table that is not there any more, or has other
    columns, is left alone too.
    """
    now, statements = tables(path), list[tuple[str, Sequence[Any]]]()
    for name, table in before.items():
        if name not in now or now[name].columns != table.columns or name not in written:
            continue
        was, then = table.rows, written[name].rows
        theirs = [
            rowid
            for rowid in {*was, *then}
            if was.get(rowid) != then.get(rowid) == now[name].rows.get(rowid)
        ]
        statements += [part for rowid in theirs for part in table.deleted(rowid)]
        statements += [
            part for rowid in theirs if rowid in was for part in table.inserted(was[rowid], rowid)
        ]
        for rowid in {*was, *then, *now[name].rows} - {*theirs}:
            rows = (was.get(rowid), then.get(rowid), now[name].rows.get(rowid))
            columns = () if None in rows else zip(table.columns, *filter(None, rows), strict=True)
            cells = {column: one for column, one, two, three in columns if one != two == three}
            statements += table.updated(rowid, cells, key="") if cells else ()
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
    columns = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
    keys = [column[1] for column in columns if column[5]]
    rows = connection.execute(f'SELECT rowid, * FROM "{name}"').fetchall()  # noqa: S608  as above
    key = keys[0] if len(keys) == 1 else ""
    return Table(name, tuple(c[1] for c in columns), key, {row[0]: row[1:] for row in rows})


def kinds_of_entries(here: Mapping[str, Table]) -> dict[int, str]:
    """Return the kind of each entry, by its index: it stands in the entry itself."""
    kinds: dict[int, str] = {}
    for table in here.values():
        for rowid, row in table.rows.items():
            for value in row:
                document = state_mutations.parsed(value) if isinstance(value, bytes) else None
                if isinstance(document, dict) and "kind" in document:
                    kinds[rowid] = str(document["kind"])
    return kinds


Change = tuple[str, str, Statements]


def _of_table(
    table: Table,
    fresh: Sequence[int],
    kinds: Mapping[int, str],
    there: Sequence[Table],
    then: Mapping[str, Table],
    chance: Random,
) -> Iterator[Change]:
    yield "emptied", "emptied", table.deleted()
    for moment, old in then.items():
        if old.rows != table.rows:
            back = [statement for row in old.rows.values() for statement in old.inserted(row)]
            what = f"as of '{moment}'"
            yield what, what, [*table.deleted(), *back]
    for rowid in fresh:
        values = table.named(rowid)
        kind = " ".join(
            [kinds.get(values.get("idx", rowid), ""), str(values.get("role", ""))]
        ).strip()
        for what, statements in _of_row(table, rowid, there, then, chance):
            # all that is done within a member of an entry is a kind: each has the entry's hash
            member = what.partition(" ")[0].split(".")
            named = ".".join(member[:2]) if len(member) > 1 else what
            yield f"{kind}: {named}", f"{rowid} ({kind}) {what}", statements


def _of_row(
    table: Table,
    rowid: int,
    there: Sequence[Table],
    then: Mapping[str, Table],
    chance: Random,
) -> Iterator[tuple[str, Statements]]:
    values = table.named(rowid)
    others = [other for other in table.rows if other != rowid]
    yield "deleted", table.deleted(rowid)
    if table.key and isinstance(values[table.key], int):
        for what, place in (("once more", max(table.rows) + 1), ("far behind", 1 << 40)):
            copied = {**values, table.key: place}
            yield what, table.inserted(list(copied.values()))
        yield "moved", table.updated(rowid, {table.key: max(table.rows) + 1}, key="")
    if others:
        other = chance.choice(others)
        yield (
            "and another swapped",
            [
                *table.updated(rowid, table.named(other)),
                *table.updated(other, values),
            ],
        )
        yield "in another's place", table.updated(other, values)
        yield "is another's", table.updated(rowid, table.named(other))
    foreign = [one for one in there if one.rows]
    if foreign:
        source = chance.choice(foreign)
        taken = source.named(rowid if rowid in source.rows else chance.choice(list(source.rows)))
        yield "is another file's", table.updated(rowid, taken)
    for moment, old in then.items():
        if rowid in old.rows and old.rows[rowid] != table.rows[rowid]:
            yield f"as of '{moment}'", table.updated(rowid, old.named(rowid))
    for column, value in values.items():
        for what, changed in _of_value(table, column, value, chance):
            if type(changed) is not type(value) or changed != value:
                yield f"{column}{what}", table.updated(rowid, {column: changed}, key="")


def _of_value(table: Table, column: str, value: Any, chance: Random) -> Iterator[tuple[str, Any]]:
    at = table.columns.index(column)
    pool = sorted({repr(row[at]): row[at] for row in table.rows.values()}.items())
    others = [other for _, other in pool if other != value and other is not None]
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
        document = state_mutations.parsed(value)
        if document is not None:
            alike = [found for _, other in pool if (found := _document(other)) is not None]
            for what, changed in state_mutations.changes(document, alike, chance):
                yield f".{what}", changed


def _document(value: Any) -> Any:
    return state_mutations.parsed(value) if isinstance(value, bytes) else None


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
        yield Mutation(
            f"{state_mutations.family(path)} {what}", f"{path} {what}", _executing(path, parts)
        )


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
        name: sql.replace(" NOT NULL", "").replace(" STRICT", "") for name, sql in schema.items()
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
