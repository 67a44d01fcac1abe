"""Pins: the tools of an MCP server as a person has seen them, each with its digest.

A server describes its tools itself, and can describe them in another way tomorrow. A model reads
the new description, with whatever it says. A pin is the SHA-256 over the RFC 8785 form of the whole
definition of a tool: name, title, description, schemas, annotations and all else. This module turns
definitions into digests and pins into bytes, and compares both; it does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentguard.adapters import ArgumentsError, DecodeError, EncodeError, digest, loads
from agentguard_mcp.arguments import require_checkable
from agentguard_mcp.gateway.messages import MAX_LEVELS

FORMAT: Final = "agentguard-mcp-pins/1"

Definition = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pins:
    """The pinned tools of one server: the definition of each tool by the tool's name."""

    server: str
    definitions: Mapping[str, Definition]

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 (hex) of each definition, by the tool's name."""
        return {name: digest_of(one) for name, one in self.definitions.items()}

    @property
    def uncheckable(self) -> dict[str, str]:
        """Why no arguments can be checked, by the tool's name, for each such tool."""
        found = {}
        for name, one in self.definitions.items():
            try:
                require_checkable(one.get("inputSchema", {}))
            except ArgumentsError as error:
                found[name] = str(error)
        return found

    def dumps(self) -> bytes:
        """Return the pins as a file for people: indented JSON, sorted by name."""
        tools = {
            name: {"sha256": digest_of(one), "definition": dict(one)}
            for name, one in sorted(self.definitions.items())
        }
        document = {"format": FORMAT, "server": self.server, "tools": tools}
        return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode()

    @classmethod
    def loads(cls, data: bytes, server: str) -> Pins:
        """Read the pins of ``server`` from a file.

        Raises ``DecodeError`` (``pins.malformed``) for another format or server, and for a digest
        that is not the definition's: somebody has edited the file by hand.
        """
        try:
            document: Any = loads(data, limit=len(data), depth=MAX_LEVELS, exact=True)
            tools = document["tools"]
            is_of_server = (document["format"], document["server"]) == (FORMAT, server)
            definitions = {name: one["definition"] for name, one in tools.items()}
            found = {name: one["sha256"] for name, one in tools.items()}
            is_sound = cls(server, definitions).digests == found
        except (
            *(KeyError, TypeError, AttributeError),
            *(DecodeError, EncodeError),
        ) as error:
            message = f"the file of pins can't be read ({type(error).__name__})"
            raise DecodeError(message, code="pins.malformed") from error
        if not is_of_server:
            message = f"the file does not hold the pins of the server {server}"
            raise DecodeError(message, code="pins.malformed")
        if not is_sound or any(one.get("name") != name for name, one in definitions.items()):
            message = "a digest in the file of pins is not that of the definition beside it"
            raise DecodeError(message, code="pins.malformed")
        return cls(server, definitions)


@dataclass(frozen=True, slots=True)
class Difference:
    """How the tools of a server differ from the pins: three lists of names, each sorted."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def compare(pinned: Pins, found: Pins) -> Difference:
    """Return how the tools that were found differ from the pinned ones."""
    before, after = pinned.digests, found.digests
    return Difference(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(name for name in before.keys() & after if before[name] != after[name])),
        tuple(sorted(before.keys() - after.keys())),
    )


def pins_of(server: str, definitions: Iterable[Definition]) -> Pins:
    """Return the pins of a list of tools.

    Raises ``DecodeError`` (``pins.malformed``) for a tool without a name or a description in JSON,
    and for two tools of one name: nobody could say which of the two a call means.
    """
    by_name: dict[str, Definition] = {}
    for one in definitions:
        name = one.get("name")
        if not isinstance(name, str) or name in by_name:
            message = f"the server {server} names a tool twice, or one of its tools has no name"
            raise DecodeError(message, code="pins.malformed")
        by_name[name] = one
    pins = Pins(server, by_name)
    try:
        _digests = pins.digests
    except EncodeError as error:
        message = f"a tool of the server {server} has no canonical description: {error}"
        raise DecodeError(message, code="pins.malformed") from error
    return pins


def digest_of(definition: Definition) -> str:
    """Return the SHA-256 (hex) of a tool's definition; raises ``EncodeError``."""
    return digest(dict(definition))
