"""``[server]``: where a guard server listens, and how a client knows it and is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agentguard.domain.config.address import Address, address, parse
from agentguard.errors import ConfigError
from agentguard.tables import MistakeError, Table, below, kinds, resolve, setting
from agentguard.tables.kinds import Kind

if TYPE_CHECKING:
    from agentguard.issuers.credentials import ClientCredentials

TLS: Final = "tls://"
MAX_SOCKET: Final = 100
"""The most bytes of a socket's path; Linux accepts 107."""

_ONE_PROOF: Final = (
    "one proof of who this client is: certificate and key, or token_file, or a table [server.oauth]"
)


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


@dataclass(frozen=True, slots=True)
class TlsListener:
    """Where the server also listens for clients on other machines, over TCP with TLS 1.3.

    ::

        [server.tls]
        listen = "0.0.0.0:7443"
        certificate = "server.pem"
        key = "server.key"
        ca = "clients-ca.pem"
    """

    listen: Address = setting(address())
    """The address and the port."""

    certificate: Path = setting(kinds.file)
    """The server's certificate."""

    key: Path = setting(kinds.file)
    """The key of that certificate."""

    ca: Path | None = setting(kinds.file, default=None)
    """The certificates of the authority that signs those of the clients; required where a client
    has a certificate."""


def _oauth() -> type[ClientCredentials]:
    from agentguard.issuers.credentials import ClientCredentials  # noqa: PLC0415  few ask

    return ClientCredentials


def _url(table: Table, key: str) -> Path | Address:
    text = kinds.text.read(table, key)
    if text.startswith(TLS):
        host = parse(text.removeprefix(TLS))
        if host is None:
            raise table.mistake(key, f"a host and a port, as in '{TLS}guard.example:7443'")
        return host
    return socket_of(text, partial(resolve, table.base), table.name(key))


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A program with this table uses the guard server at the address.

    ``agentguard serve`` with the same table listens there (docs/how-to/server.md).

    ::

        [server]
        url = "unix:///run/agentguard/guard.sock"
        # ca = "authority.pem"
        # token_file = "/var/run/secrets/tokens/agentguard"
        # certificate = "web-1.pem"
        # key = "web-1.key"
        pin_tools = true
        max_clients = 256
        max_connections = 64
        max_calls = 1024
        reconnect = 60.0
        drain = 10.0
        timeout = 30.0
        patience = 5.0
        health = "127.0.0.1:9464"
    """

    url: Path | Address = setting(Kind("string", "a string", _url))
    """The address: ``unix:`` and the path of a socket, of at most 100 bytes; or for a client on
    another machine ``tls://HOST:PORT``."""

    ca: Path | None = setting(kinds.file, default=None)
    """For a url ``tls://HOST:PORT``: the certificates by which a client knows the server; by
    default the system's."""

    token_file: Path | None = setting(kinds.file, default=None)
    """For such a url: a file with the token that says who this client is, in the place of a
    certificate; the file is read for each connection (docs/how-to/workload-tokens.md)."""

    certificate: Path | None = setting(kinds.file, default=None)
    """For such a url: the certificate of this client, with a SPIFFE ID; a file that has changed
    counts for the next connection."""

    key: Path | None = setting(kinds.file, default=None)
    """For such a url: the key of that certificate."""

    pin_tools: bool = setting(kinds.boolean, default=True)
    """Whether a tool must stay what it was at an agent's first call, until ``agentguard server
    accept``."""

    max_clients: int = setting(kinds.count, default=256)
    """The most client processes of each user at a time."""

    max_connections: int = setting(kinds.count, default=64)
    """The most connections of one client process."""

    max_calls: int = setting(kinds.count, default=1024)
    """The most calls of one client process that are under way."""

    reconnect: float = setting(kinds.seconds, default=60.0)
    """How long a client that was lost may come back and report outcomes, in seconds."""

    drain: float = setting(kinds.seconds, default=10.0)
    """How long a server that ends waits for the outcomes of calls that run, in seconds."""

    timeout: float = setting(kinds.seconds, default=30.0)
    """How long a client waits for an answer, in seconds."""

    patience: float = setting(kinds.seconds, default=5.0)
    """How long a client that was connected waits for a server that is started anew, in seconds."""

    health: Address | None = setting(
        address(
            "a loopback address and a port, as in '127.0.0.1:9464'",
            lambda one: one.is_loopback and one.port > 0,
        ),
        default=None,
    )
    """A loopback address and a port where the server answers ``/healthz``, ``/livez`` and
    ``/metrics`` over HTTP; without the key nowhere."""

    tls: TlsListener | None = setting(below(lambda: TlsListener), default=None)
    oauth: ClientCredentials | None = setting(below(_oauth), default=None)

    def __post_init__(self) -> None:
        files = {
            "ca": self.ca,
            "certificate": self.certificate,
            "key": self.key,
            "token_file": self.token_file,
            "oauth": self.oauth,
        }
        named = [name for name, value in files.items() if value is not None]
        if isinstance(self.url, Path):
            if named:
                message = (
                    f"{named[0]}: ca, certificate, key, token_file and oauth are for a url that "
                    f"begins with {TLS}"
                )
                raise ConfigError(message)
            return
        has_certificate = self.certificate is not None or self.key is not None
        if has_certificate + ("token_file" in named) + ("oauth" in named) != 1:
            raise MistakeError("certificate", _ONE_PROOF)
        if has_certificate and None in (self.certificate, self.key):
            raise MistakeError("certificate", "the certificate and the key of this client")

    @property
    def address(self) -> Path | Host:
        """The path of the unix socket, or the server on another machine."""
        if isinstance(self.url, Path):
            return self.url
        files = self.ca, self.certificate, self.key, self.token_file
        return Host(*self.url, *files, self.oauth)

    def socket(self) -> Path:
        """Return the path of the unix socket; raises ``ConfigError`` for another address."""
        if isinstance(self.url, Path):
            return self.url
        message = "[server] url: this needs the server's own address, unix:PATH"
        raise ConfigError(message)


def socket_of(url: str, resolve: Callable[[str], Path], where: str) -> Path:
    """Return the path of a socket from ``unix:PATH``; raises ``ConfigError``.

    ``where`` is the place of the address, for the message.
    """
    scheme, _, rest = url.partition(":")
    text = "/" + rest.lstrip("/") if rest.startswith("//") else rest
    if scheme != "unix" or not text.strip("/"):
        message = (
            f"{where}: expected unix:PATH or {TLS}HOST:PORT, as in "
            f"'unix:///run/agentguard/guard.sock', got {url!r}"
        )
        raise ConfigError(message)
    path = resolve(text)
    if len(str(path).encode()) > MAX_SOCKET:
        message = f"{where}: the path of a socket takes at most {MAX_SOCKET} bytes: {path}"
        raise ConfigError(message)
    return path
