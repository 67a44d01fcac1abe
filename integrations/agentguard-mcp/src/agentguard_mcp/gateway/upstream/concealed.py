"""``Concealed``: a server whose messages do not show the secrets that the gateway has given it.

A server may repeat its token: in an error, in a report of its settings, because a model has asked
for it. Each exact occurrence of a secret's value in a message is replaced before the client and
the log get the message. Another spelling of the value, as in base64, is not found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentguard import AgentguardError
from agentguard_mcp.gateway.messages import Message, is_response, read, write
from agentguard_mcp.gateway.upstream.protocol import Upstream

MARK: Final = "[a secret was here]"
"""What stands in a message in the place of a secret."""

SHORTEST: Final = 6
"""The characters of the shortest value that is looked for; a shorter one stands in many texts."""

_ESCAPE: Final = b"\\"

_LOGGER = logging.getLogger("agentguard.mcp")


def concealed(server: Upstream, secrets: Mapping[str, str]) -> Upstream:
    """Return ``server`` such that its messages show no value of ``secrets``.

    ``secrets`` has the values by the names of the variables that hold them. A value of less than
    ``SHORTEST`` characters is not looked for, and the program's log says so.
    """
    values: set[str] = set()
    for name, value in secrets.items():
        if len(value.strip()) < SHORTEST:
            _LOGGER.warning("the secret in %s is too short to be looked for in results", name)
        else:
            values |= {value, value.strip()}
    return Concealed(server, values) if values else server


class Concealed:
    """A server behind a gateway, without ``values`` in what it says."""

    def __init__(self, server: Upstream, values: Iterable[str]) -> None:
        self._server = server
        # the longest first: a value may be the beginning of another one
        self._values = tuple(sorted(values, key=len, reverse=True))
        self._bytes = tuple(value.encode() for value in self._values)

    def send(self, message: Message) -> None:
        """Write a message as it is; raises as the server does."""
        self._server.send(message)

    async def next(self) -> bytes:
        """Return the server's next message, with ``MARK`` for each value; empty at the end.

        A line that is no message comes as it is: nobody passes such a line on.
        """
        line = await self._server.next()
        if _ESCAPE not in line and not any(value in line for value in self._bytes):
            return line  # a value could stand there only as it is
        try:
            message = read(line)
        except AgentguardError:
            return line
        is_answer = is_response(message)  # its id is the client's own
        shown = {
            part: value if part == "id" and is_answer else self._shown(value)
            for part, value in message.items()
        }
        return line if shown == message else write(shown)

    async def end(self, *, at_once: bool = False) -> None:
        """End the connection to the server."""
        await self._server.end(at_once=at_once)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._values:
                value = value.replace(secret, MARK)
            return value
        if isinstance(value, dict):
            return {self._shown(name): self._shown(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self._shown(member) for member in value]
        return MARK if type(value) is int and str(value) in self._values else value
