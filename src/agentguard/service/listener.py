"""``ServiceListener``: serves the application with uvicorn, in a thread of the server's process.

The socket is bound before uvicorn starts, so that a port in use fails the start. uvicorn's own
limits are wide, so narrower ones stand here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Any, Final

from agentguard.domain.config.service import ServiceConfig
from agentguard.errors import ConfigError, ServerError
from agentguard.service.application import make_application
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import MAX_HEADERS

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as missing:
    what, brings = "the token service ([service])", "starlette and uvicorn"
    raise ConfigError.without_extra("service", what=what, brings=brings) from missing

CONNECTIONS: Final = 256
"""The most connections and requests; a further one is answered with 503."""

LONGEST: Final = 60.0
"""Seconds after which a connection is closed that has no request under way."""

_START: Final = 30.0
_MARGIN: Final = 5.0
_BACKLOG: Final = 128


class ServiceListener:
    """Listens at the address of ``[service]`` until ``close``, which waits ``drain`` seconds.

    Raises ``ServerError`` (``server.address``) where the address can't be had, or where the
    certificate or the key can't be read.
    """

    def __init__(self, parts: ServiceParts, *, drain: float) -> None:
        self._parts = parts
        self._longest_end = drain + _MARGIN
        config = parts.config
        self._socket = _bound(config)
        try:
            self._server = uvicorn.Server(_configured(parts, drain))
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._run, name="agentguard-service", daemon=True)
        self._thread.start()
        self._wait_until_started()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            logging.getLogger("agentguard").exception("the token service has ended")

    def _wait_until_started(self) -> None:
        waited = threading.Event()
        for _ in range(int(_START * 100)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        self.close()
        raise ServerError("the token service does not start", code="server.address")

    def close(self) -> None:
        """Accept no request any more, wait for those under way, and end.

        A request that hangs does not keep the process: its thread is left behind.
        """
        self._server.should_exit = True
        self._thread.join(self._longest_end)
        self._socket.close()
        self._parts.store.close()


def _bound(config: ServiceConfig) -> socket.socket:
    try:
        bound = socket.create_server(
            (config.host, config.port),
            family=socket.AF_INET6 if ":" in config.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
        # asyncio sets the option only for sockets that name TCP as their protocol; connections
        # inherit it here. Without it, the body of an answer waits 40 ms for the client's kernel
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        place = f"{config.host} port {config.port}"
        message = f"[service] listen: the service can't listen at {place}: {error}"
        raise ServerError(message, code="server.address") from error
    return bound


def _configured(parts: ServiceParts, drain: float) -> uvicorn.Config:
    config = parts.config
    configured = uvicorn.Config(
        make_application(parts),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",  # else each odd request would write a line into the server's log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=max(1, int(drain)),
        h11_max_incomplete_event_size=MAX_HEADERS,
        ssl_certfile=config.certificate,
        ssl_keyfile=config.key,
    )
    try:
        configured.load()
    except OSError as error:  # among them ssl.SSLError
        message = f"[service]: the certificate or the key can't be read: {error}"
        raise ServerError(message, code="server.address") from error
    return configured


class _Protocol(H11Protocol):
    """One connection: closed where the client has sent no whole request for too long.

    uvicorn itself waits without an end for the headers of a request.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        super().connection_made(transport)
        self._expiry = asyncio.get_running_loop().call_later(LONGEST, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._expiry.cancel()
        super().connection_lost(exc)

    def _expire(self) -> None:
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            self.transport.abort()
        else:
            self._expiry = asyncio.get_running_loop().call_later(LONGEST, self._expire)
