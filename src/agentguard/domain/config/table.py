"""Reads one table of a configuration, key by key; errors name the place and the expected value.

``file.py`` knows the names of the tables and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from agentguard.delegation import grant
from agentguard.domain.config.spelling import did_you_mean
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.principal import require_principal
from agentguard.signing.canonical import is_integer

Choice = TypeVar("Choice", bound=str)
T = TypeVar("T")


class Table:
    """Reads one table, and remembers which keys were read.

    ``source`` is the file, and ``path`` the prefix of each key (``agents.reviewer.``). Each method
    that reads a key raises ``ConfigError`` for a value of another type.
    """

    def __init__(self, members: Mapping[str, Any], source: str, path: str) -> None:
        self._members = members
        self._source = source
        self._path = path
        self._keys: set[str] = set()

    def name(self, key: str) -> str:
        """Return the place of a key, for people; the place of the table for an empty key."""
        return f"{self._source}: {self._path}{key}".removesuffix(".")

    def mistake(self, key: str, expected: str) -> ConfigError:
        """Return the error for a value that is missing, or differs from ``expected``."""
        if key not in self._members:
            got = "found none"
        elif f"{self._path}{key}".partition(".")[0] == "secrets":  # it may be a secret itself
            got = "got another value"
        else:
            got = f"got {self._members[key]!r}"
        return ConfigError(f"{self.name(key)}: expected {expected}, {got}")

    def _get(self, key: str) -> object:
        self._keys.add(key)
        return self._members.get(key)

    def text(self, key: str, default: str | None = None, *, may_be_empty: bool = False) -> str:
        """Return a string; without a default the key is required.

        An empty string is refused unless it ``may_be_empty``: a key that is there names something.
        """
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.mistake(key, "a string")
        if "\0" in value:
            raise self.mistake(key, "a string without U+0000")
        if not value and not may_be_empty:
            raise self.mistake(key, "a string that is not empty, or no such key")
        return value

    def optional(self, key: str) -> str | None:
        """Return a string that is not empty, None without the key."""
        return None if self._get(key) is None else self.text(key)

    def file(self, key: str, resolve: Callable[[str], Path]) -> Path | None:
        """Return the path that a key may name, None for none; ``resolve`` makes it absolute."""
        text = self.optional(key)
        return None if text is None else resolve(text)

    def is_text(self, key: str) -> bool:
        """Return whether the value of a key that may be of several types is a string."""
        return isinstance(self._members.get(key), str)

    def has(self, key: str) -> bool:
        """Return whether the table has a value other than null under a key."""
        return self._members.get(key) is not None

    def allow(self, key: str) -> None:
        """Allow a key that is read elsewhere."""
        self._keys.add(key)

    def choice(
        self, key: str, choices: tuple[Choice, ...], default: Choice | None = None
    ) -> Choice:
        """Return one of ``choices``; without a default the key is required."""
        if self._get(key) is None and default is not None:
            return default
        value = self.text(key) if self._get(key) is not None else None
        for choice in choices:
            if choice == value:
                return choice
        raise self.mistake(key, " or ".join(repr(choice) for choice in choices))

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.mistake(key, "true or false")
        return value

    def count(self, key: str, default: int) -> int:
        """Return a whole number from 1."""
        value = self._get(key)
        if value is None:
            return default
        if not is_integer(value) or value < 1:
            raise self.mistake(key, "a whole number from 1")
        return value

    def number(self, key: str) -> int | None:
        """Return a whole number from 0, None without the key."""
        value = self._get(key)
        if value is None:
            return None
        if not is_integer(value) or value < 0:
            raise self.mistake(key, "a whole number from 0")
        return value

    def seconds(self, key: str, default: float) -> float:
        """Return a number above 0."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.mistake(key, "a number of seconds above 0")
        if not (isfinite(value) and value > 0):
            raise self.mistake(key, "a number of seconds above 0")
        return float(value)

    def texts(self, key: str, default: T) -> tuple[str, ...] | T:
        """Return a list of strings."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.mistake(key, "a list of strings")
        return tuple(value)

    def asked(self, key: str, what: str) -> tuple[str, ...] | None:
        """Return a list of strings that asks for something, or None without the key.

        ``what`` is the thing that the list names. An empty list would ask for nothing.
        """
        given = self.texts(key, None)
        if given is not None and not all(given or [""]):
            raise self.mistake(key, f"a list that names {what}, or no key {key} at all")
        return given

    def scope(self, key: str, default: T) -> frozenset[str] | T:
        """Return a list of scopes as a set, which may be empty."""
        given = self.texts(key, None)
        if given is None:
            return default
        try:
            return frozenset(grant.parse_scopes(given))
        except DelegationError as error:
            raise ConfigError(f"{self.name(key)}: {error}") from error

    def principal(self, key: str, name: str) -> str:
        """Return ``name``, the value of ``key``, if it is the name of a principal."""
        try:
            return require_principal(name, "principal", ConfigError)
        except ConfigError as error:
            raise ConfigError(f"{self.name(key)}: {error}") from error

    def mapping(self, key: str) -> Mapping[str, str] | None:
        """Return a table of strings, or None without the key."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise self.mistake(key, "a table of strings")
        return MappingProxyType(dict(value))

    def table(self, key: str, beside: str | None = None) -> Table:
        """Return the table below a key, an empty table without the key.

        ``beside`` is a key of another type than a table, of which ``key`` may be a misspelling.
        """
        value = self._get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.mistake(
                key, "a table" if beside is None else f"a table, or the key {beside}"
            )
        return Table(value, self._source, f"{self._path}{key}.")

    def tables(self, key: str) -> list[tuple[str, Table]]:
        """Return the tables below a key, by name."""
        outer = self.table(key)
        return [(name, outer.table(name)) for name in outer.names()]

    def names(self) -> list[str]:
        """Return the keys of the table."""
        return list(self._members)

    def reject_unknown(self) -> None:
        """Raise ``ConfigError`` for a key that was neither read nor allowed."""
        unknown = sorted(set(self._members) - self._keys)
        if unknown:
            keys = ", ".join(sorted(self._keys))
            meant = did_you_mean(unknown[0], self._keys)
            message = (
                f"{self.name(unknown[0])}: unknown key; {meant}"
                f"{'T' if meant else 't'}he keys of this table are: {keys}"
            )
            raise ConfigError(message)
