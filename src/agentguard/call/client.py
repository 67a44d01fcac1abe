"""``Client``: the process that makes a call through a guard server, as the server observed it.

A call in the process of its guard has no client: code in that process can do whatever the guard can
do (docs/how-to/server.md, "What isolation means").
"""

from __future__ import annotations

from typing import Literal

from agentguard.signing.declared import Declared

Isolation = Literal["same-user", "separate-user", "remote"]
"""Whether a client runs under the user of the server, who reaches the server's files and memory.

A ``remote`` client is on another machine, or connects as if it were.
"""


class Client(Declared, kw_only=False):
    """A client of a guard server: its name in ``[clients]`` (empty without that table)."""

    name: str
    isolation: Isolation
