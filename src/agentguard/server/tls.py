"""Clients on other machines: TCP with TLS, where a client has a certificate or shows a token.

The certificate of a client is signed by the authority that ``[server.tls] ca`` names, and has a
SPIFFE ID among its alternative names (a URI, SPIFFE X.509-SVID), which ``[clients]`` lists. Where
``[clients]`` also lists subjects of an issuer, a client may come without a certificate; its
greeting then has a token (``tokens.py``).
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from cryptography import x509

from agentguard.domain.config.clients import ClientConfig
from agentguard.domain.config.server import TlsListener
from agentguard.errors import ServerError
from agentguard.wire.stream import Stream

HANDSHAKE: Final = 10.0
"""Seconds that the handshake of a client may take."""

_UNHEARD: Final = 30
"""Seconds after which a machine is gone that takes no data, or answers no probe."""

_BACKLOG: Final = 256


def context_of(config: TlsListener, *, takes_tokens: bool) -> ssl.SSLContext:
    """Return what the server's end of TLS goes by.

    ``takes_tokens`` says whether a client may come without a certificate. Raises ``ServerError``
    (``server.address``).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a ticket would stand for a certificate that has ended meanwhile
    without_ca = ssl.CERT_NONE if config.ca is None else ssl.CERT_OPTIONAL
    context.verify_mode = without_ca if takes_tokens else ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(config.certificate, config.key)
        if config.ca is not None:
            context.load_verify_locations(config.ca)
    except OSError as error:  # among them ssl.SSLError
        message = f"[server.tls]: a certificate or a key can't be read: {error}"
        raise ServerError(message, code="server.address") from error
    return context


def listen(config: TlsListener) -> socket.socket:
    """Return a socket that listens; raises ``ServerError`` (``server.address``)."""
    try:
        return socket.create_server(
            config.listen,
            family=socket.AF_INET6 if ":" in config.listen.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        message = f"the guard server can't listen at {config.listen}: {error}"
        raise ServerError(message, code="server.address") from error


class Known(NamedTuple):
    """What a certificate says: the client, and when it or one above it ends (Unix time)."""

    client: ClientConfig
    ends_at: float


class Handshakes:
    """The connections whose clients are not known yet.

    Past ``most``, the connection that began first is ended. Whoever has neither certificate nor
    token can begin many, and gets no further; a client's takes a moment.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[socket.socket, socket.socket] = {}  # in the order of their beginnings

    def begin(self, accepted: socket.socket, encrypted: socket.socket) -> None:
        """Count a connection until ``end``; ``accepted`` is the socket before TLS."""
        with self._lock:
            if len(self._open) >= self._most:
                first = self._open.pop(next(iter(self._open)))
                with suppress(OSError):
                    socket.socket.shutdown(first, socket.SHUT_RDWR)  # not that of SSLSocket
            self._open[accepted] = encrypted

    def end(self, accepted: socket.socket) -> None:
        """Count a connection no more: its client is known, or has gone."""
        with self._lock:
            self._open.pop(accepted, None)


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
) -> tuple[Stream, Known | None]:
    """Take up a connection; return the stream, and what its certificate says.

    Without a certificate that is None, and the connection stays among ``handshakes``.
    Raises ``OSError`` where the handshake fails, and ``ServerError`` (``server.stranger``) for a
    certificate that is no client's.
    """
    limit(connected)
    connected.settimeout(HANDSHAKE)
    encrypted = context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
    try:
        handshakes.begin(connected, encrypted)
        encrypted.do_handshake()
        encrypted.settimeout(None)
        certificate = encrypted.getpeercert()
        known = None
        if certificate is not None:
            client = _client_of(_uris(certificate), clients)
            known = Known(client, _first_end(_verified_chain(encrypted)))
            handshakes.end(connected)
        return Stream(encrypted, is_served=True), known
    except BaseException:
        handshakes.end(connected)
        encrypted.close()
        raise


def _verified_chain(encrypted: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates (DER) that TLS has verified, from the client's to the authority's."""
    if sys.version_info >= (3, 13):
        return encrypted.get_verified_chain()
    # Python has had the method since 3.10, and calls it public since 3.13
    verified = encrypted._sslobj.get_verified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in verified or ()]


def _first_end(chain: list[bytes]) -> float:
    """Return when the first of the certificates ends (Unix time); raises ``ServerError``."""
    try:
        ends = [x509.load_der_x509_certificate(one).not_valid_after_utc for one in chain]
        return min(ends).timestamp()
    except ValueError as error:  # also for no certificate
        message = f"nobody can say when the certificates of a client end: {error}"
        raise ServerError(message, code="server.stranger") from error


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
