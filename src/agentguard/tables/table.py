"""One table of a configuration, with its place for messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agentguard.errors import ConfigError
from agentguard.spelling import did_you_mean


class MistakeError(ConfigError):
    """A value of ``key`` that differs from what is ``expected``.

    A record raises it for a rule between its keys; whoever reads the table adds its place.
    """

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}")
        self.key = key
        self.expected = expected


class Table:
    """The members of a table.

    ``source`` is the file, and ``path`` the prefix of each key (``agents.reviewer.``). Paths in the
    table are relative to ``base``.
    """

    def __init__(
        self, members: Mapping[str, Any], source: str, path: str = "", base: Path = Path()
    ) -> None:
        self._members = members
        self._source = source
        self._path = path
        self.base = base

    def name(self, key: str = "") -> str:
        """Return the place of a key, for people; the place of the table for an empty key."""
        return f"{self._source}: {self._path}{key}".removesuffix(".")

    def mistake(self, key: str, expected: str) -> ConfigError:
        """Return the error for a value that is missing, or differs from ``expected``."""
        if not self.has(key):
            got = "found none"
        elif f"{self._path}{key}".partition(".")[0] == "secrets":  # it may be a secret itself
            got = "got another value"
        else:
            got = f"got {self._members[key]!r}"
        return ConfigError(f"{self.name(key)}: expected {expected}, {got}")

    def get(self, key: str) -> object:
        """Return the value of a key, None without the key."""
        return self._members.get(key)

    def has(self, key: str) -> bool:
        """Return whether the table has a value other than null under a key."""
        return self._members.get(key) is not None

    def names(self) -> list[str]:
        """Return the keys of the table."""
        return list(self._members)

    def table(self, key: str, expected: str = "a table") -> Table:
        """Return the table below a key, an empty table without the key.

        Raises ``ConfigError`` for another value.
        """
        value = {} if self.get(key) is None else self.get(key)
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.mistake(key, expected)
        return Table(value, self._source, f"{self._path}{key}.", self.base)

    def part(self, keys: Collection[str]) -> Table:
        """Return the part of the table that these keys make up."""
        members = {name: value for name, value in self._members.items() if name in keys}
        return Table(members, self._source, self._path, self.base)

    def require_known(self, keys: Collection[str]) -> None:
        """Raise ``ConfigError`` for a key that is none of ``keys``."""
        unknown = sorted(set(self._members) - set(keys))
        if unknown:
            meant = did_you_mean(unknown[0], keys)
            message = (
                f"{self.name(unknown[0])}: unknown key; {meant}"
                f"{'T' if meant else 't'}he keys of this table are: {', '.join(sorted(keys))}"
            )
            raise ConfigError(message)


def resolve(base: Path, text: str) -> Path:
    """Make a path of the configuration absolute; raises ``ConfigError``.

    ``base`` is the folder of the configuration; ``~`` is expanded.
    """
    try:
        return base / Path(text).expanduser()
    except RuntimeError as error:
        message = f"{text!r}: there is no such home directory; write the path without ~"
        raise ConfigError(message) from error
