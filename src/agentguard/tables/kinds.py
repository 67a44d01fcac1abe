"""What the value of a key may be: each kind reads a value, or says what it expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from agentguard.delegation.grant import parse_scopes
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity.principal import require_principal
from agentguard.signing.canonical import is_integer
from agentguard.tables.table import Table, resolve

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of value.

    ``words`` are for the reference (``list of strings``), ``expected`` for the error about a key
    that is missing. ``read`` returns the value of a key that is there, and raises ``ConfigError``.
    ``records`` are for the reference, too: what the table, or each of the tables, is read into.
    """

    words: str
    expected: str
    read: Callable[[Table, str], T]
    records: tuple[Callable[[], type[Any]], ...] = ()

    def to(self, make: Callable[[T], U | None], expected: str = "") -> Kind[U]:
        """Return the kind of a value that is made of one of this kind.

        ``make`` returns None for a value that differs from what is ``expected``. An error of
        agentguard's that it raises is told with the place of the key.
        """
        expected = expected or self.expected

        def read(table: Table, key: str) -> U:
            given = self.read(table, key)
            try:
                made = make(given)
            except AgentguardError as error:
                raise ConfigError(f"{table.name(key)}: {error}") from error
            if made is None:
                raise table.mistake(key, expected)
            return made

        return Kind(self.words, expected, read)

    def where(self, is_good: Callable[[T], bool], expected: str) -> Kind[T]:
        """Return the kind of the values for which ``is_good`` is true."""
        return self.to(lambda value: value if is_good(value) else None, expected)


def _of(words: str, expected: str, is_good: Callable[[Any], bool]) -> Kind[Any]:
    """Return the kind of the values of TOML for which ``is_good`` is true."""
    return Kind(words, expected, lambda table, key: table.get(key)).where(is_good, expected)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values())


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) and value > 0


any_text: Final[Kind[str]] = _of("string", "a string", lambda value: isinstance(value, str)).where(
    lambda value: "\0" not in value, "a string without U+0000"
)
"""A string, which may be empty."""

text: Final = replace(
    any_text.where(bool, "a string that is not empty, or no such key"), expected="a string"
)
"""A string that is not empty: a key that is there names something."""

boolean: Final[Kind[bool]] = _of(
    "true or false", "true or false", lambda value: isinstance(value, bool)
)

number: Final[Kind[int]] = _of(
    "whole number", "a whole number from 0", lambda value: is_integer(value) and value >= 0
)

count: Final[Kind[int]] = _of(
    "whole number from 1", "a whole number from 1", lambda value: is_integer(value) and value > 0
)

seconds: Final[Kind[float]] = _of(
    "number of seconds", "a number of seconds above 0", _is_seconds
).to(float)

texts: Final[Kind[tuple[str, ...]]] = _of("list of strings", "a list of strings", _is_texts).to(
    tuple
)
"""A list of strings, which may be empty."""

mapping: Final[Kind[Mapping[str, str]]] = _of(
    "table of strings", "a table of strings", _is_mapping
).to(lambda value: MappingProxyType(dict(value)))

principal: Final = text.to(
    lambda name: require_principal(name, "principal", ConfigError), "the name of a principal"
)


def _scope(names: Iterable[str]) -> frozenset[str]:
    return frozenset(parse_scopes(names))


scope: Final = Kind("list of scopes", "a list of scopes", texts.to(_scope).read)
"""A list of scopes, which may be empty."""


def names(what: str) -> Kind[tuple[str, ...]]:
    """Return the kind of a list that names something: neither it nor a name in it is empty."""
    return texts.where(lambda given: bool(given) and "" not in given, what)


def some(what: str) -> Kind[tuple[str, ...]]:
    """Return the kind of a list that asks for ``what``: an empty list would ask for nothing."""
    return names(f"a list that names {what}, or no such key")


def choice(*choices: str) -> Kind[Any]:
    """Return the kind of one of some strings."""
    expected = " or ".join(repr(one) for one in choices)
    words = " or ".join(f'`"{one}"`' for one in choices)
    return _of(words, expected, lambda value: isinstance(value, str) and value in choices)


def _file(table: Table, key: str) -> Path:
    absolute = partial(resolve, table.base)
    return text.to(absolute).read(table, key)


file: Final = Kind("string", "the path of a file", _file)
"""A path, relative to the configuration; ``~`` is the home folder."""
