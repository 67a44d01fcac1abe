"""Reads a table of a configuration into the record that declares its keys.

A record is a dataclass. A field made with ``setting`` is a key of the table; other fields are given
by whoever reads the table. ``__post_init__`` has the rules between keys: it raises
``MistakeError``, or a ``ConfigError`` whose message may begin with the name of a key
(``url: ...``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar, overload

from agentguard.errors import ConfigError
from agentguard.tables.kinds import Kind
from agentguard.tables.table import MistakeError, Table

R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")

Record = Callable[[], type[R]]
"""Returns the class of a record, which is imported only where a configuration has the table."""

_KIND: Final = "kind"
_OTHERS: Final = "others"


@overload
def setting(kind: Kind[T]) -> T: ...


@overload
def setting(kind: Kind[T], *, default: D) -> T | D: ...


def setting(kind: Kind[Any], *, default: Any = MISSING) -> Any:
    """Declare a field that is a key of the table; without a default, the key is required."""
    metadata = {_KIND: kind}
    if default is not MISSING and type(default).__hash__ is None:
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def others(record: Record[R]) -> Mapping[str, R]:
    """Declare the field of the tables whose names the user chooses, beside the keys.

    A key of the record whose value is a table is one of these tables.
    """
    tables: Mapping[str, R] = field(default_factory=dict, metadata={_OTHERS: record})
    return tables


class Layout(NamedTuple):
    """What a record declares.

    ``keys`` has the kind of each key. ``others`` is the field made with ``others``, None for none.
    ``required`` are the fields without a default. ``told`` is what the record wants to know of its
    table: its name, its place, both or neither.
    """

    keys: Mapping[str, Kind[Any]]
    others: Field[Any] | None
    required: frozenset[str]
    told: frozenset[str]


def layout_of(record: type[Any]) -> Layout:
    """Return what a record declares."""
    return _layout_of(record)  # type: ignore[arg-type]  # mypy: a class has no hash


@cache
def _layout_of(record: Any) -> Layout:
    declared = fields(record)
    keys = {one.name: one.metadata[_KIND] for one in declared if _KIND in one.metadata}
    required = [one for one in declared if one.default is one.default_factory is MISSING]
    return Layout(
        keys,
        next((one for one in declared if _OTHERS in one.metadata), None),
        frozenset(one.name for one in required),
        frozenset({"name", "place"} & {one.name for one in declared} - keys.keys()),
    )


def values_of(record: type[Any], table: Table) -> dict[str, Any]:
    """Return the values of the fields that a table gives, by name. Raises ``ConfigError``."""
    values: dict[str, Any] = {}
    keys, others, required, _ = layout_of(record)
    if others is None:
        table.require_known(keys)
    else:
        names = [
            name
            for name in table.names()
            if name not in keys or isinstance(table.get(name), Mapping)
        ]
        keys = {name: kind for name, kind in keys.items() if name not in names}
        expected = f"a table, or the key {' or '.join(keys)}"
        values[others.name] = _named(others.metadata[_OTHERS], table, names, expected)
    for name, kind in keys.items():
        if table.has(name):
            values[name] = kind.read(table, name)
        elif name in required:
            raise table.mistake(name, kind.expected)
    return values


def read(record: type[R], table: Table, **given: Any) -> R:
    """Read a table; ``given`` are the fields that are no keys. Raises ``ConfigError``."""
    return make(record, table, {**given, **values_of(record, table)})


def make(record: type[R], table: Table, values: Mapping[str, Any]) -> R:
    """Return the record of these values; an error of it is told with the place."""
    try:
        return record(**values)
    except MistakeError as error:
        raise table.mistake(error.key, error.expected) from None
    except ConfigError as error:
        is_of_key = str(error).partition(":")[0] in layout_of(record).keys
        message = f"{table.name()}{'.' if is_of_key else ': '}{error}"
        raise ConfigError(message, code=error.code) from error


def _named(
    record: Record[R], outer: Table, names: Iterable[str], expected: str = "a table"
) -> dict[str, R]:
    records: dict[str, R] = {}
    for name in names:
        table = outer.table(name, expected)
        told = {"name": name, "place": table.name()}
        given = {key: told[key] for key in layout_of(record()).told}
        records[name] = read(record(), table, **given)
    return records


def below(record: Record[R], **given: Any) -> Kind[R]:
    """Return the kind of a table ``[KEY]``; ``given`` are its fields that are no keys."""

    def read_one(table: Table, key: str) -> R:
        return read(record(), table.table(key), **given)

    return Kind("table", "a table", read_one, (record,))


def named(record: Record[R]) -> Kind[Mapping[str, R]]:
    """Return the kind of tables ``[KEY.NAME]``.

    A record's field ``name`` gets the NAME, and ``place`` the place of the table, for messages.
    """

    def read_all(table: Table, key: str) -> Mapping[str, R]:
        outer = table.table(key)
        return _named(record, outer, outer.names())

    return Kind("tables", "tables", read_all, (record,))


def each(kind: Kind[T]) -> Kind[Mapping[str, T]]:
    """Return the kind of a table whose keys are names, each with a value of one kind."""

    def read_all(table: Table, key: str) -> Mapping[str, T]:
        inner = table.table(key)
        return {name: kind.read(inner, name) for name in inner.names()}

    return Kind(kind.words, "a table", read_all)
