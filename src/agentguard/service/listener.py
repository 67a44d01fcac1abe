"""``ServiceListener``: serves the application with uvicorn, in a thread of the server's process.

The socket is bound before uvicorn starts, so that a port in use fails the start.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Final

from agentguard.domain.config.service import ServiceConfig
from agentguard.errors import ConfigError, ServerError
from agentguard.service.application import make_application
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import MAX_HEADERS

try:
    import uvicorn

    from agentguard.service.uvicorn_server import HttpConnection, listen_tcp, uvicorn_config
except ModuleNotFoundError as missing:
    what, brings = "the token service ([service])", "starlette and uvicorn"
    raise ConfigError.without_extra("service", what=what, brings=brings) from missing

CONNECTIONS: Final = 256
"""The most connections and requests; a further one is answered with 503."""

_START: Final = 30.0
_MARGIN: Final = 5.0


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
        return listen_tcp(*config.listen)
    except OSError as error:
        place = f"{config.listen.host} port {config.listen.port}"
        message = f"[service] listen: the service can't listen at {place}: {error}"
        raise ServerError(message, code="server.address") from error


def _configured(parts: ServiceParts, drain: float) -> uvicorn.Config:
    try:
        return uvicorn_config(
            make_application(parts),
            HttpConnection,
            most=CONNECTIONS,
            max_headers=MAX_HEADERS,
            grace=max(1, int(drain)),
            certificate=parts.config.certificate,
            key=parts.config.key,
        )
    except OSError as error:  # among them ssl.SSLError
        message = f"[service]: the certificate or the key can't be read: {error}"
        raise ServerError(message, code="server.address") from error
