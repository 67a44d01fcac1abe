"""``[service]``: where the token service listens, and under which URL others know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentguard.delegation.grant import is_audience
from agentguard.domain.config.address import Address, address
from agentguard.errors import ConfigError
from agentguard.proof.target import parse_audience
from agentguard.tables import MistakeError, kinds, setting

_AUDIENCES: Final = kinds.texts.where(
    lambda names: all(map(is_audience, names)), "a list of names or URLs in ASCII without spaces"
)


def _is_origin(url: str) -> bool:
    try:
        return parse_audience(url).origin == url
    except ConfigError:
        return False


_ORIGIN: Final = kinds.text.where(
    _is_origin,
    "a URL of a scheme and a host alone, as in 'https://agents.example'; http is for a service on "
    "this machine",
)


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """``agentguard serve`` with this table beside ``[server]`` is also a token service over HTTP.

    It takes the extra ``service`` (docs/how-to/token-service.md).

    ::

        [service]
        issuer = "https://agents.acme.example"
        listen = "127.0.0.1:8787"
        certificate = "service.pem"
        key = "service.key"
        audiences = ["https://tickets.acme.example"]
    """

    issuer: str = setting(_ORIGIN)
    """The URL under which others know the service, of a scheme and a host alone: the ``iss`` of
    its tokens, and the beginning of the URL of each endpoint (RFC 8414, 2)."""

    listen: Address = setting(
        address("an address and a port, as in '127.0.0.1:8787'", lambda one: one.port > 0),
        default=Address("127.0.0.1", 8787),
    )
    """The address and the port; another address than loopback needs a certificate and a key."""

    certificate: Path | None = setting(kinds.file, default=None)
    """The certificate of the service, for TLS without a proxy in front."""

    key: Path | None = setting(kinds.file, default=None)
    """The key of that certificate."""

    audiences: tuple[str, ...] = setting(_AUDIENCES, default=())
    """The audiences that a token may have; the trust domain itself is always allowed."""

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise MistakeError("key", "the private key of the certificate, beside the certificate")
        if self.certificate is None and not self.listen.is_loopback:
            expected = "a certificate and a key, because listen is no loopback address"
            raise MistakeError("certificate", expected)
