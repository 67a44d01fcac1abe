"""``Client``: the process that makes a call through a guard server, as the server observed it.

A call in the process of its guard has no client: code in that process can do whatever the guard can
do (docs/how-to/server.md, "What isolation means").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from agentguard.errors import DecodeError
from agentguard.signing.canonical import JSON

Isolation = Literal["same-user", "separate-user", "remote"]
"""Whether a client runs under the user of the server, who reaches the server's files and memory.

A ``remote`` client is on another machine, or connects as if it were.
"""


class Client(NamedTuple):
    """A client of a guard server: its name in ``[clients]`` (empty without that table)."""

    name: str
    isolation: Isolation

    def as_json(self) -> dict[str, JSON]:
        """Return the members of an entry's ``client``."""
        return {"name": self.name, "isolation": self.isolation}

    @classmethod
    def parse(cls, value: JSON | Mapping[str, JSON]) -> Client:
        """Read the members of an entry's ``client``; raises ``DecodeError``."""
        match value:
            case {
                "name": str(name),
                "isolation": "same-user" | "separate-user" | "remote" as isolation,
                **others,
            } if not others:
                return cls(name, isolation)
        raise DecodeError("not a client of a guard server", code="entry.malformed")
