"""``Resumption``: how far the gateway has read a stream of a server, and when it reads on.

A connection may break before the answer, and a server may close one on purpose. The rest of the
stream then comes over another connection, from the id of the last event on (``Last-Event-ID``; MCP
2025-11-25, "Resumability and Redelivery"). This module does no I/O.
"""

from __future__ import annotations

from typing import Final

from agentguard_mcp.gateway.upstream.server_sent_events import EventReader

TRIES: Final = 5
"""The most connections in a row that bring no event of a stream."""

PAUSE: Final = 1.0
"""Seconds before the gateway asks for the rest of a stream, unless the server says otherwise."""

SHORTEST: Final = 0.05
"""The least of these seconds: a server may say that the gateway need not wait at all."""


class Resumption:
    """What the gateway needs to take up a stream again, over all connections of the stream.

    ``event`` is the id of the last event, None where the stream can't be resumed. ``pause`` is the
    time before the next connection, in seconds. ``is_closed`` says that the server has closed the
    last connection in order.
    """

    def __init__(self) -> None:
        self.event: str | None = None
        self.pause = PAUSE
        self.is_closed = False
        self._tries = 0

    def connect(self) -> None:
        """Note that another connection begins."""
        self.is_closed = False
        self._tries += 1

    @property
    def may_go_on(self) -> bool:
        """Whether the stream may be asked for once more."""
        return self.event is not None and self._tries < TRIES

    def move(self, reader: EventReader) -> None:
        """Note what a connection has brought so far."""
        if reader.last_id != self.event:
            self.event = reader.last_id
            self._tries = 0
        if reader.retry is not None:
            self.pause = max(SHORTEST, reader.retry / 1000)
