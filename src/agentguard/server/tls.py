"""Clients on other machines: TCP with TLS, where each client has a certificate.

The certificate of a client is signed by the authority that ``[server.tls] ca`` names, and has a
SPIFFE ID among its alternative names (a URI, SPIFFE X.509-SVID), which ``[clients]`` lists.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from agentguard.domain.config.server import ClientConfig, TlsListener
from agentguard.errors import ServerError
from agentguard.wire.stream import Stream

HANDSHAKE: Final = 10.0
"""Seconds that the handshake of a client may take."""

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


def accept(
    connected: socket.socket, context: ssl.SSLContext, clients: Mapping[str, ClientConfig]
) -> tuple[Stream, ClientConfig]:
    """Take up a connection; return the stream, and the client that its certificate names.

    Raises ``OSError`` where the handshake fails, and ``ServerError`` (``server.stranger``) for a
    certificate that is no client's.
    """
    connected.settimeout(HANDSHAKE)
    encrypted = context.wrap_socket(connected, server_side=True)
    try:
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
