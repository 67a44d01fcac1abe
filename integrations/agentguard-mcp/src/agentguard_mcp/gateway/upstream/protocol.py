"""``Upstream``: what the gateway asks of the server behind it, and how a server can fail.

``process.py`` has a server that is a process of the gateway's, and ``http.py`` one at a URL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from agentguard_mcp.gateway.messages import MAX_LINE, Message, RequestId

GRACE: Final = 2.0
"""Seconds in which a server has to end: a process by itself, and again after SIGTERM."""

TOO_LONG: Final = f"the server has sent a message of more than {MAX_LINE} bytes"


class UpstreamLostError(Exception):
    """The server has ended, does not read, or has broken the protocol: an answer will not come.

    The text says what happened, without a word of the server's own.
    """

    def __init__(self, message: str = "the server has ended") -> None:
        super().__init__(message)


OnLost = Callable[[RequestId, Exception], None]
"""Is told that the server will not answer a request, and why: lost, refused, or not sent."""


OnPoll = Callable[[RequestId], None]
"""Is told that a server has closed the connection of a request, and wants to be asked again."""


class NotSentError(Exception):
    """The server could not be reached before a call was sent: the call did not run."""

    def __init__(self, message: str = "the server has ended") -> None:
        super().__init__(message)


class RefusedError(Exception):
    """The server, or what stands in front of it, has refused a request by an HTTP status.

    By this answer the call did not run. Nothing proves so: the request has been sent.
    """


async def not_started(_method: str, _params: dict[str, Any]) -> Message:
    """Stand in for a server that does not run yet: the call that starts it asks for nothing."""
    raise UpstreamLostError


class Upstream(Protocol):
    """A server that the gateway speaks to: a process (``ServerProcess``) or one over HTTP."""

    def send(self, message: Message) -> None:
        """Write a message without a wait; raises ``UpstreamLostError`` and ``EncodeError``."""

    async def next(self) -> bytes:
        """Return the server's next message as it came, empty once the server is gone.

        Raises ``UpstreamLostError`` for a server that has broken the protocol.
        """

    async def end(self, *, at_once: bool = False) -> None:
        """End the connection to the server, and a process that the gateway has started."""
