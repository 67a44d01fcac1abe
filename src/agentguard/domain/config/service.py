"""Reads ``[service]``: where the token service listens, and under which URL others know it.

``agentguard serve`` with this table answers over HTTP, beside the guard server's socket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentguard.delegation import grant
from agentguard.domain.config.server import is_loopback, read_port
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError
from agentguard.proof.target import parse_audience

LISTEN: Final = "127.0.0.1:8787"
"""The default of ``listen``."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """``[service]``: the token service of a trust domain.

    ``issuer`` is the URL of the service: the ``iss`` of its tokens, and the beginning of the URL of
    each endpoint (RFC 8414, 2). The service listens at ``host`` and ``port``: with TLS where a
    ``certificate`` and its ``key`` are named, and otherwise on loopback alone. ``audiences`` are
    the audiences that a token may have; the trust domain itself is always allowed.
    """

    issuer: str
    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    audiences: frozenset[str] = frozenset()


def read_service(table: Table, resolve: Callable[[str], Path]) -> ServiceConfig:
    """Read ``[service]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    issuer = _issuer(table)
    host, port = _listen(table)
    certificate, key = table.file("certificate", resolve), table.file("key", resolve)
    if (certificate is None) is not (key is None):
        raise table.mistake("key", "the private key of the certificate, beside the certificate")
    if certificate is None and not is_loopback(host):
        expected = "a certificate and a key, because listen is no loopback address"
        raise table.mistake("certificate", expected)
    audiences = table.texts("audiences", ())
    if not all(grant.is_audience(name) for name in audiences):
        raise table.mistake("audiences", "a list of names or URLs in ASCII without spaces")
    table.reject_unknown()
    return ServiceConfig(issuer, host, port, certificate, key, frozenset(audiences))


def _issuer(table: Table) -> str:
    issuer = table.text("issuer")
    try:
        is_origin = parse_audience(issuer).origin == issuer
    except ConfigError:
        is_origin = False
    if not is_origin:
        expected = (
            "a URL of a scheme and a host alone, as in 'https://agents.example'; http is for a "
            "service on this machine"
        )
        raise table.mistake("issuer", expected)
    return issuer


def _listen(table: Table) -> tuple[str, int]:
    host, _, port = table.text("listen", LISTEN).rpartition(":")
    number = read_port(port)
    if not host or not number:
        raise table.mistake("listen", "an address and a port, as in '127.0.0.1:8787'")
    return host.removeprefix("[").removesuffix("]"), number
