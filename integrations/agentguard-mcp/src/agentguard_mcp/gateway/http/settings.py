"""``EndpointSettings``: where a gateway over HTTP listens, and how clients reach the gateway.

``Settings`` says what stands behind the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

PATH: Final = "/mcp"
"""The path of the endpoint, unless the URL says otherwise."""

SESSIONS: Final = 64
"""The most sessions at once, unless the configuration says otherwise."""

METADATA: Final = "/.well-known/oauth-protected-resource"
"""The path of the metadata of a resource without a path (RFC 9728, 3)."""

IDLE: Final = 600.0
"""Seconds after which a session ends in which nothing happens, unless the configuration says so."""


@dataclass(frozen=True, slots=True)
class OAuth:
    """That each request needs an access token of a user, for this gateway and of a known issuer.

    ``issuers`` has the URL of each issuer whose tokens count, with the scope that its users
    delegate, None for all that their roles allow. ``scopes`` are the scopes that a client asks for
    at first. ``scope_claim`` is the claim with the scopes of a token, as a text or a list; None
    where the scopes of tokens do not count.
    """

    issuers: Mapping[str, tuple[str, ...] | None]
    scopes: tuple[str, ...] = ()
    scope_claim: str | None = "scope"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where a gateway listens for clients over HTTP.

    The gateway listens at ``host`` and ``port``; for port 0 the system chooses one. The unix socket
    ``socket`` takes their place, and is for the gateway's own user alone. ``url`` is the address of
    the endpoint as clients know it, which is also the name of the resource in tokens (RFC 8707);
    None stands for the address at which the gateway listens. ``certificate`` and ``key`` are files
    for TLS, None for plain HTTP. ``origins`` are the origins of pages in browsers that may ask,
    beside the gateway's own. ``sessions`` is the most sessions at once. ``idle`` and ``drain`` are
    in seconds: after ``idle`` a session ends in which nothing happens, and calls have ``drain`` to
    end when the gateway does. ``oauth`` asks for tokens; None takes the caller whom the proof or
    ``Settings`` names.
    """

    host: str = "127.0.0.1"
    port: int = 0
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    origins: tuple[str, ...] = ()
    sessions: int = SESSIONS
    idle: float = IDLE
    drain: float = 10.0
    oauth: OAuth | None = None
    socket: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway that listens at ``port``: its URL, and the hosts and origins that requests name.

    ``hosts`` None is for a unix socket, to which no page in a browser can connect.
    """

    port: int
    url: str
    path: str
    hosts: frozenset[str] | None
    origins: frozenset[str]

    @classmethod
    def of(cls, endpoint: EndpointSettings, port: int) -> Place:
        """Return the place of a gateway that listens at ``port``."""
        if endpoint.socket is not None:
            url = endpoint.url or f"http://localhost{PATH}"
            return cls(0, url, urlsplit(url).path or "/", None, frozenset(endpoint.origins))
        scheme = "http" if endpoint.certificate is None else "https"
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        url = endpoint.url or f"{scheme}://{host}:{port}{PATH}"
        parts = urlsplit(url)
        hosts = {parts.netloc.lower()}
        if parts.port is None:  # a client may name the port that the scheme has anyway
            hosts.add(f"{parts.netloc.lower()}:{443 if parts.scheme == 'https' else 80}")
        own = {f"{parts.scheme}://{parts.netloc}".lower()}
        if is_loopback(endpoint.host):
            names = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
            hosts |= names | {f"{host}:{port}"}
            own |= {f"{scheme}://{name}" for name in names}
        origins = own | {one.lower() for one in endpoint.origins}
        return cls(port, url, parts.path or "/", frozenset(hosts), frozenset(origins))

    @property
    def metadata_url(self) -> str:
        """The URL of the metadata of the resource (RFC 9728, 3.1)."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{self.metadata_path}"

    @property
    def metadata_path(self) -> str:
        """The path of the metadata of the resource (RFC 9728, 3.1)."""
        return METADATA + ("" if self.path == "/" else self.path)


def is_loopback(host: str) -> bool:
    """Return whether an address is one of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
