"""Clients on other machines: TCP with TLS, where each client has a certificate.

The certificate of a client is signed by the authority that ``[server.tls] ca`` names, and has a
SPIFFE ID among its alternative names (a URI, SPIFFE X.509-SVID), which ``[clients]`` lists.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from agentguard.domain.config.server import ClientConfig, TlsListener
from agentguard.errors import ServerError
from agentguard.wire.stream import Stream

HANDSHAKE: Final = 10.0
"""Seconds that the handshake of a client may take."""

_UNHEARD: Final = 30
"""Seconds after which a machine is gone that takes no data, or answers no probe."""

_BACKLOG: Final = 256


def context_of(config: TlsListener) -> ssl.SSLContext:
    """Return what the server's end of TLS goes by; raises ``ServerError`` (``server.address``)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(config.certificate, config.key)
        context.load_verify_locations(config.ca)
    except OSError as error:  # among them ssl.SSLError
        message = f"[server.tls]: a certificate or a key can't be read: {error}"
        raise ServerError(message, code="server.address") from error
    return context


def listen(config: TlsListener) -> socket.socket:
    """Return a socket that listens; raises ``ServerError`` (``server.address``)."""
    try:
        return socket.create_server(
            (config.host, config.port),
            family=socket.AF_INET6 if ":" in config.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        message = f"the guard server can't listen at {config.host}:{config.port}: {error}"
        raise ServerError(message, code="server.address") from error


class Handshakes:
    """The handshakes that go on: past ``most``, the one that began first loses its connection.

    Whoever has no certificate can begin many, and ends none; a client's takes a moment.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # in the order of their beginnings

    @contextmanager
    def one(self, connected: socket.socket) -> Iterator[None]:
        """Count a handshake until the context ends."""
        with self._lock:
            if len(self._open) >= self._most:
                first = next(iter(self._open))
                del self._open[first]
                with suppress(OSError):
                    socket.socket.shutdown(first, socket.SHUT_RDWR)  # not that of SSLSocket
            self._open[connected] = None
        try:
            yield
        finally:
            with self._lock:
                self._open.pop(connected, None)


def limit(connected: socket.socket) -> None:
    """Have the kernel end a connection whose other end has gone, or does not read."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _UNHEARD),
        (socket.TCP_KEEPINTVL, _UNHEARD // 3),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, _UNHEARD * 1000),
    ):
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def accept(
    connected: socket.socket,
    context: ssl.SSLContext,
    clients: Mapping[str, ClientConfig],
    handshakes: Handshakes,
) -> tuple[Stream, ClientConfig]:
    """Take up a connection; return the stream, and the client that its certificate names.

    Raises ``OSError`` where the handshake fails, and ``ServerError`` (``server.stranger``) for a
    certificate that is no client's.
    """
    limit(connected)
    connected.settimeout(HANDSHAKE)
    encrypted = context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
    try:
        with handshakes.one(encrypted):
            encrypted.do_handshake()
        encrypted.settimeout(None)
        return Stream(encrypted, is_served=True), _client_of(
            _uris(encrypted.getpeercert()), clients
        )
    except BaseException:
        encrypted.close()
        raise


def _client_of(names: list[str], clients: Mapping[str, ClientConfig]) -> ClientConfig:
    for client in clients.values():
        if client.spiffe is not None and names == [client.spiffe]:
            return client
    message = f"the certificate of {names} is no client's: see spiffe in [clients]"
    raise ServerError(message, code="server.stranger")


def _uris(certificate: Any) -> list[str]:
    """Return the URIs among the alternative names; an X.509-SVID has exactly one."""
    names = (certificate or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI"]
