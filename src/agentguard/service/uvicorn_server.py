"""What the HTTP servers of agentguard share: the socket, uvicorn's settings, and connections.

The token service and the MCP gateway serve with uvicorn, whose own limits are wide. So narrower
ones stand here. The module needs uvicorn, and whoever imports the module says which extra brings
uvicorn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

LONGEST: Final = 60.0
"""Seconds after which a connection is closed that has no request under way, or takes no byte."""

SPARE: Final = 64
"""The connections beyond the most that get status 503; a further one is closed at once."""

_BACKLOG: Final = 128


class HttpConnection(H11Protocol):
    """One connection: closed where the client sends no whole request for too long, or never reads.

    uvicorn itself waits without an end for the headers of a request, and for a client to read.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        super().connection_made(transport)
        most = self.limit_concurrency
        if most is not None and len(self.connections) > most + SPARE:
            transport.abort()  # each connection takes a file, of which the guard needs some
        self._idle_since = self.loop.time()
        self._expiry = self.loop.call_later(LONGEST, self._expire)
        self._stall: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._expiry.cancel()
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read what has been written."""
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        """Go on with the answer: the client has read."""
        self._end_stall()
        super().resume_writing()

    def _watch_stall(self) -> None:
        self._end_stall()
        unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(LONGEST, self._abort_stalled, unread)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _abort_stalled(self, unread: int) -> None:
        """End a connection whose client has taken nothing of the unread bytes since then."""
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._watch_stall()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request; the client has as long to read the answer."""
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def _expire(self) -> None:
        cycle: Any = self.cycle  # None before the first request
        is_idle = cycle is None or cycle.response_complete
        left = self._idle_since + LONGEST - self.loop.time() if is_idle else LONGEST
        if left <= 0:
            self.transport.abort()
        else:
            self._expiry = self.loop.call_later(left, self._expire)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an IP address; for port 0 the system chooses a port.

    Raises ``OSError``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # asyncio sets the option only for sockets that name TCP as their protocol; connections
    # inherit it here. Without it, the body of an answer waits 40 ms for the client's kernel
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def uvicorn_config(
    application: Callable[..., Any],
    connection: type[HttpConnection],
    *,
    most: int,
    max_headers: int,
    grace: int,
    certificate: Path | None,
    key: Path | None,
) -> uvicorn.Config:
    """Return the settings of a server of an ASGI application.

    A connection or a request beyond ``most`` is answered with status 503. ``max_headers`` is in
    bytes. ``grace`` is the number of seconds that requests have at the end. ``certificate`` and
    ``key`` are the files for TLS, None for plain HTTP. Raises ``OSError`` where these files can't
    be read.
    """
    configured = uvicorn.Config(
        application,
        http=connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",  # else each odd request would write a line into the server's log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most,
        timeout_graceful_shutdown=grace,
        h11_max_incomplete_event_size=max_headers,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    configured.load()
    return configured
