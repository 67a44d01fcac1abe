"""``Share``: what the processes of one user may hold in the server at a time.

A connection takes a thread and a descriptor of the server, and what a client names takes memory.
All processes of one user have one share, so that no user takes what the others need.
"""

from __future__ import annotations

import resource
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from agentguard.domain.config.clients import ClientConfig
from agentguard.errors import ServerError

MOST_CONNECTIONS: Final = 1024
"""The most connections of one user, where the server may open enough files."""

MOST_BYTES: Final = 256 << 20
"""The most bytes that the agents, tools, delegations and calls of one user take, as estimated."""

MOST_SPARE: Final = MOST_BYTES // 2
"""The bytes of a user up to which the server keeps what it can make anew."""

LARGE: Final = 64 << 10
"""A frame of more bytes is large."""

LARGE_AT_ONCE: Final = 4
"""The most large frames of one user that are read, answered and written at a time."""

MOST_WARNINGS: Final = 60
"""The most warnings of what one user sends that the server logs in a minute."""

_MINUTE: Final = 60.0

_OWN_FILES: Final = 256
"""The descriptors that the server needs beside those of connections."""

Owner = int | str
"""Whose connections are counted together: a user, or a client on another machine."""

REMOTE: Final = ""
"""The owner of connections from other machines whose clients are not known yet."""


@dataclass(slots=True, eq=False)
class Share:
    """What the processes of one user hold. ``large`` is held from a large frame to its answer.

    The server's lock guards ``connections`` and ``clients`` (processes).
    """

    most_connections: int
    most_clients: int
    connections: int = 0
    clients: int = 0
    large: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(LARGE_AT_ONCE))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bytes: int = 0
    _warnings: int = 0
    _warned_since: float = 0.0

    def open(self) -> None:
        """Note a connection; raises ``ServerError`` (``server.busy``)."""
        if self.connections >= self.most_connections:
            raise _busy(f"this user has {self.connections} connections")
        self.connections += 1

    def begin(self) -> None:
        """Note a process; raises ``ServerError`` (``server.busy``)."""
        if self.clients >= self.most_clients:
            raise _busy(f"this user has {self.clients} clients")
        self.clients += 1

    def take(self, size: int) -> None:
        """Note so many bytes; raises ``ServerError`` (``server.busy``)."""
        if not self.try_take(size):
            raise _busy("what the clients of this user have named takes too much memory")

    def try_take(self, size: int, *, at_most: int = MOST_BYTES) -> bool:
        """Note so many bytes, unless they are too many; return whether they were noted."""
        with self._lock:
            has_room = self._bytes + size <= at_most
            self._bytes += size if has_room else 0
            return has_room

    def give(self, size: int) -> None:
        """Note that so many bytes are not held any more."""
        with self._lock:
            self._bytes -= size

    def may_warn(self) -> bool:
        """Return whether to log one more warning: a client can send nonsense all day."""
        with self._lock:
            now = time.monotonic()
            if now - self._warned_since > _MINUTE:
                self._warned_since, self._warnings = now, 0
            self._warnings += 1
            return self._warnings <= MOST_WARNINGS


class Shares:
    """The share of each owner of connections. The caller of a method has the server's lock.

    ``most_clients`` is for each owner; ``clients`` is how many clients there are in the
    configuration.
    """

    def __init__(self, most_clients: int, clients: int) -> None:
        self._most_clients = most_clients
        self._clients = clients
        self._shares: dict[Owner, Share] = {}

    def of(self, owner: Owner) -> Share:
        """Return what an owner of connections may hold."""
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = Share(self._most_connections(), self._most_clients)
        return share

    def divide(self, clients: int) -> None:
        """Divide the server's files among so many clients; who has more connections keeps them."""
        self._clients = clients
        most = self._most_connections()
        for share in self._shares.values():
            share.most_connections = most

    def _most_connections(self) -> int:
        files = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_FILES, _OWN_FILES)
        return min(MOST_CONNECTIONS, files // (self._clients + 1))


def owner_of(uid: int | None, client: ClientConfig) -> Owner:
    """Return the owner of a client's connections; ``uid`` None is for another machine."""
    return f"client {client.name}" if uid is None else uid


def _busy(what: str) -> ServerError:
    return ServerError(f"{what}, which is the limit: wait, or end some", code="server.busy")
