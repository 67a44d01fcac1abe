"""Reads ``[server]``: where a guard server listens; and what ``[clients]`` says of a client.

A program with ``[server]`` in its configuration uses the server at the address; ``agentguard
serve`` with the same table listens there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError

if TYPE_CHECKING:
    from agentguard.issuers.client_credentials import ClientCredentials

SCHEME: Final = "unix:"
TLS: Final = "tls://"
EVERYTHING: Final = "*"

_ONE_PROOF: Final = (
    "one proof of who this client is: certificate and key, or token_file, or a table [server.oauth]"
)

LAUNCHED: Final = "run:"
"""The beginning of the names of the clients that ``agentguard run`` has started."""

MAX_SOCKET: Final = 100
"""The most bytes of a socket's path; Linux accepts 107."""


MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """``[clients.NAME]``: the user whose processes are this client, and what the client may do.

    A client on another machine has no ``uid``. Such a client has the SPIFFE ID of a certificate
    (``spiffe``), or a token of the ``issuer`` of this name whose subject is ``subject``, and which
    has these ``claims`` besides, each with exactly this text.
    ``agents`` are the names of the agents that the client may be, ``vouches_for`` the principals
    whose delegations the client begins and takes up; a name that ends in ``*`` stands for all
    names that begin so. Each member of a ``group`` is a client, with the name ``NAME/USER``.
    ``answers`` says whether the application's word counts for approvals, and
    ``sees_requests`` whether the client sees the requests of all agents, as a person who signs
    answers has to.
    """

    name: str
    uid: int | None
    agents: tuple[str, ...] = ()
    vouches_for: tuple[str, ...] = ()
    answers: bool = False
    sees_requests: bool = False
    spiffe: str | None = None
    issuer: str | None = None
    subject: str | None = None
    claims: tuple[tuple[str, str], ...] = ()
    group: str | None = None

    @property
    def table(self) -> str:
        """The NAME of the table in ``[clients]``."""
        return self.name if self.group is None else self.name.partition("/")[0]

    @property
    def mark(self) -> tuple[int | str | None, ...]:
        """What the server knows the client by; no two clients have the same."""
        return (self.uid, self.spiffe, self.issuer, self.subject)

    def may_see_requests_of(self, agent: str) -> bool:
        """Whether the client sees the requests for approvals of this agent."""
        return self.answers or self.sees_requests or self.may_be(agent)

    def may_be(self, agent: str) -> bool:
        """Whether the client may be this agent."""
        return _matches(self.agents, agent)

    def may_vouch_for(self, principal: str) -> bool:
        """Whether the client may begin and take up delegations of this principal."""
        return _matches(self.vouches_for, principal)


class Host(NamedTuple):
    """A server on another machine, and the files with which a client knows it and is known.

    ``ca`` has the certificates that are trusted, by default the system's. The client has a
    ``certificate`` and its ``key``, or a token: from ``token_file``, or from the token endpoint of
    ``oauth``.
    """

    name: str
    port: int
    ca: Path | None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    oauth: ClientCredentials | None = None


class TlsListener(NamedTuple):
    """``[server.tls]``: where a server also listens for clients on other machines.

    ``certificate`` and ``key`` are the server's. ``ca`` has the certificates of the authority that
    signs the clients', None where every client has a token.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    ca: Path | None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``[server]``: the address, a unix socket or a ``Host``, and the limits of the server.

    ``pin_tools`` says whether an agent's tool must stay what it was at the first call.
    ``max_clients`` is for each user, ``max_connections`` and ``max_calls`` (calls whose tools run)
    are for each client process.
    ``reconnect`` is how many seconds a client that was lost may come back to report outcomes,
    ``drain`` how many seconds the server waits for outcomes before it ends, ``timeout`` how many
    seconds a client waits for an answer, and ``patience`` how many for a server that is started
    anew. ``health`` is the address and the port of the listener for probes, None for no listener.
    """

    address: Path | Host
    tls: TlsListener | None = None
    pin_tools: bool = True
    max_clients: int = 256
    max_connections: int = 64
    max_calls: int = 1024
    reconnect: float = 60.0
    drain: float = 10.0
    timeout: float = 30.0
    patience: float = 5.0
    health: tuple[str, int] | None = None

    def socket(self) -> Path:
        """Return the path of the unix socket; raises ``ConfigError`` for another address."""
        if isinstance(self.address, Path):
            return self.address
        message = "[server] url: this needs the server's own address, unix:PATH"
        raise ConfigError(message)


def read_server(
    table: Table, resolve: Callable[[str], Path], clients: Mapping[str, ClientConfig] | None
) -> ServerConfig:
    """Read ``[server]``, for these ``clients``; raises ``ConfigError``."""
    default = ServerConfig(Path())
    tls = table.table("tls") if "tls" in table.names() else None
    config = ServerConfig(
        _address(table, resolve),
        None if tls is None else _tls(tls, resolve, () if clients is None else clients.values()),
        pin_tools=table.boolean("pin_tools", default=default.pin_tools),
        max_clients=table.count("max_clients", default.max_clients),
        max_connections=table.count("max_connections", default.max_connections),
        max_calls=table.count("max_calls", default.max_calls),
        reconnect=table.seconds("reconnect", default.reconnect),
        drain=table.seconds("drain", default.drain),
        timeout=table.seconds("timeout", default.timeout),
        patience=table.seconds("patience", default.patience),
        health=_health(table),
    )
    for name in ("tls", "oauth"):
        table.allow(name)
    table.reject_unknown()
    return config


def is_loopback(host: str) -> bool:
    """Return whether an address is one of this machine alone; a name is none."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_port(text: str) -> int | None:
    """Return a port from its decimal digits, None for another text; 0 is a port."""
    is_port = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PORT))
    return int(text) if is_port and int(text) <= MAX_PORT else None


def _health(table: Table) -> tuple[str, int] | None:
    """Return the loopback address and the port of ``health``; raises ``ConfigError``."""
    text = table.optional("health")
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        is_valid = is_loopback(host) and 0 < int(port) <= MAX_PORT
    except ValueError:
        is_valid = False
    if not is_valid:
        raise table.mistake("health", "a loopback address and a port, as in '127.0.0.1:9464'")
    return host, int(port)


def _address(table: Table, resolve: Callable[[str], Path]) -> Path | Host:
    url = table.text("url")
    names = ("ca", "certificate", "key", "token_file")
    files = {name: table.file(name, resolve) for name in names}
    if not url.startswith(TLS):
        if any(files.values()) or "oauth" in table.names():
            message = (
                f"{table.name('')}: ca, certificate, key, token_file and oauth are for a url that "
                f"begins with {TLS}"
            )
            raise ConfigError(message)
        return socket_of(url, resolve, table.name("url"))
    name, port = _host(table, "url", url.removeprefix(TLS))
    oauth = _oauth(table.table("oauth"), resolve) if "oauth" in table.names() else None
    host = Host(name, port, **files, oauth=oauth)
    has_certificate = host.certificate is not None or host.key is not None
    if has_certificate + (host.token_file is not None) + (oauth is not None) != 1:
        raise table.mistake("certificate", _ONE_PROOF)
    if has_certificate and None in (host.certificate, host.key):
        raise table.mistake("certificate", "the certificate and the key of this client")
    return host


def _oauth(table: Table, resolve: Callable[[str], Path]) -> ClientCredentials:
    # few clients ask a token endpoint
    from agentguard.issuers.address import address_of  # noqa: PLC0415
    from agentguard.issuers.client_credentials import ClientCredentials  # noqa: PLC0415

    url, client, secret = (
        table.text(key) for key in ("token_url", "client_id", "client_secret_file")
    )
    scope, ca = table.optional("scope"), table.file("ca", resolve)
    table.reject_unknown()
    address_of(url, table.name("token_url"))
    if not client.isascii():
        raise table.mistake("client_id", "the identifier of this client at the provider")
    return ClientCredentials(url, client, resolve(secret), scope, ca)


def _tls(
    table: Table, resolve: Callable[[str], Path], clients: Iterable[ClientConfig]
) -> TlsListener:
    host, port = _host(table, "listen", table.text("listen"))
    certificate, key = (resolve(table.text(name)) for name in ("certificate", "key"))
    ca = table.file("ca", resolve)
    proofs = {client.spiffe is not None for client in clients if client.uid is None}
    if ca is None and proofs != {False}:
        raise table.mistake("ca", "the certificates of the authority of the clients' certificates")
    table.reject_unknown()
    return TlsListener(host, port, certificate, key, ca)


def _host(table: Table, key: str, text: str) -> tuple[str, int]:
    name, _, port = text.rpartition(":")
    if not name or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise table.mistake(key, "a host and a port, as in 'guard.example:7443'")
    return name.removeprefix("[").removesuffix("]"), int(port)


def socket_of(url: str, resolve: Callable[[str], Path], where: str) -> Path:
    """Return the path of a socket from ``unix:PATH``; raises ``ConfigError``.

    ``where`` is the place of the address, for the message.
    """
    scheme, _, rest = url.partition(":")
    text = "/" + rest.lstrip("/") if rest.startswith("//") else rest
    if f"{scheme}:" != SCHEME or not text.strip("/"):
        message = f"{where}: expected unix:PATH or tls://HOST:PORT, as in 'unix:///run/agentguard/guard.sock'"
        raise ConfigError(f"{message}, got {url!r}")
    path = resolve(text)
    if len(str(path).encode()) > MAX_SOCKET:
        message = f"{where}: the path of a socket takes at most {MAX_SOCKET} bytes: {path}"
        raise ConfigError(message)
    return path


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith(EVERYTHING) else name == pattern
        for pattern in patterns
    )
