"""Reads ``[server]`` and ``[clients]``: where a guard server listens, and who may be its client.

A program with ``[server]`` in its configuration uses the server at the address; ``agentguard
serve`` with the same table listens there.
"""

from __future__ import annotations

import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError

SCHEME: Final = "unix:"
EVERYTHING: Final = "*"

LAUNCHED: Final = "run:"
"""The beginning of the names of the clients that ``agentguard run`` has started."""

MAX_SOCKET: Final = 100
"""The most bytes of a socket's path; Linux accepts 107."""


MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """``[clients.NAME]``: the user whose processes are this client, and what the client may do.

    ``agents`` are the names of the agents that the client may be, ``vouches_for`` the principals
    whose delegations the client begins and takes up; a name that ends in ``*`` stands for all
    names that begin so. ``answers`` says whether the application's word counts for approvals.
    """

    name: str
    uid: int
    agents: tuple[str, ...] = ()
    vouches_for: tuple[str, ...] = ()
    answers: bool = False

    def may_be(self, agent: str) -> bool:
        """Whether the client may be this agent."""
        return _matches(self.agents, agent)

    def may_vouch_for(self, principal: str) -> bool:
        """Whether the client may begin and take up delegations of this principal."""
        return _matches(self.vouches_for, principal)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``[server]``: the path of the unix socket, and the limits of the server.

    ``pin_tools`` says whether an agent's tool must stay what it was at the first call.
    ``max_clients`` is for each user, ``max_connections`` and ``max_calls`` (calls whose tools run)
    are for each client process.
    ``reconnect`` is how many seconds a client that was lost may come back to report outcomes,
    ``drain`` how many seconds the server waits for outcomes before it ends, ``timeout`` how many
    seconds a client waits for an answer, and ``patience`` how many for a server that is started
    anew. ``health`` is the address and the port of the listener for probes, None for no listener.
    """

    socket: Path
    pin_tools: bool = True
    max_clients: int = 256
    max_connections: int = 64
    max_calls: int = 1024
    reconnect: float = 60.0
    drain: float = 10.0
    timeout: float = 30.0
    patience: float = 5.0
    health: tuple[str, int] | None = None


def read_server(table: Table, resolve: Callable[[str], Path]) -> ServerConfig:
    """Read ``[server]``; raises ``ConfigError``."""
    default = ServerConfig(Path())
    config = ServerConfig(
        socket_of(table.text("url"), resolve, table.name("url")),
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
    table.reject_unknown()
    return config


def _health(table: Table) -> tuple[str, int] | None:
    """Return the loopback address and the port of ``health``; raises ``ConfigError``."""
    text = table.text("health", "")
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        is_valid = ip_address(host).is_loopback and 0 < int(port) <= MAX_PORT
    except ValueError:
        is_valid = False
    if not is_valid:
        raise table.mistake("health", "a loopback address and a port, as in '127.0.0.1:9464'")
    return host, int(port)


def socket_of(url: str, resolve: Callable[[str], Path], where: str) -> Path:
    """Return the path of a socket from ``unix:PATH``; raises ``ConfigError``.

    ``where`` is the place of the address, for the message.
    """
    scheme, _, rest = url.partition(":")
    text = "/" + rest.lstrip("/") if rest.startswith("//") else rest
    if f"{scheme}:" != SCHEME or not text.strip("/"):
        message = f"{where}: expected unix:PATH, as in 'unix:///run/agentguard/guard.sock'"
        raise ConfigError(f"{message}, got {url!r}")
    path = resolve(text)
    if len(str(path).encode()) > MAX_SOCKET:
        message = f"{where}: the path of a socket takes at most {MAX_SOCKET} bytes: {path}"
        raise ConfigError(message)
    return path


def read_clients(root: Table) -> Mapping[str, ClientConfig] | None:
    """Read ``[clients]``; None without the table. Raises ``ConfigError``."""
    clients: dict[str, ClientConfig] = {}
    for name, table in root.tables("clients"):
        if not name or not name.isprintable():
            raise ConfigError(f"{table.name('uid')}: the name of a client is a text of one line")
        if name.startswith(LAUNCHED):
            message = f"{table.name('uid')}: only programs of agentguard run have names with run:"
            raise ConfigError(message)
        uid = _uid(table)
        other = next((one.name for one in clients.values() if one.uid == uid), None)
        if other is not None:
            message = f"{table.name('uid')}: the client {other} has the same user"
            raise ConfigError(message)
        clients[name] = ClientConfig(
            name,
            uid,
            table.texts("agents", ()),
            table.texts("vouches_for", ()),
            table.boolean("answers", default=False),
        )
        table.reject_unknown()
    return clients if "clients" in root.names() else None


def _uid(table: Table) -> int:
    """Return the number of the user, which ``uid`` or ``user`` names."""
    uid, user = table.number("uid"), table.text("user", "")
    if (uid is None) == (not user):
        raise table.mistake("uid", "either the number of a user, or user = 'NAME'")
    if uid is not None:
        return uid
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise table.mistake("user", "the name of a user of this machine") from error


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith(EVERYTHING) else name == pattern
        for pattern in patterns
    )
