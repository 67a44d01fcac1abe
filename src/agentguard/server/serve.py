"""``GuardServer``: listens on a unix socket, and serves each connection in a thread.

A thread serves one connection with blocking reads and writes; the threads that write to the log at
the same time share one commit (``storage/log.py``). Who a client is, the kernel says: the user of
the process at the other end of the socket.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import socket as sockets
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agentguard.call.client import Isolation
from agentguard.domain.config import Config
from agentguard.domain.config.server import EVERYTHING, ClientConfig, ServerConfig
from agentguard.errors import ConfigError, ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server import connection
from agentguard.server.figures import Figures
from agentguard.server.launch import Channels, read_launch
from agentguard.server.pins import ToolPins
from agentguard.server.session import Session
from agentguard.server.share import MOST_CONNECTIONS, Share
from agentguard.storage import lock
from agentguard.wire import frame, values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

_LOGGER = logging.getLogger("agentguard")

_PEER: Final = struct.Struct("3i")
_ROOT: Final = 0
"""The user who reaches the server's files and memory, whatever the server's own user is."""

_BACKLOG: Final = 256
_OWN_FILES: Final = 256
"""The descriptors that the server needs beside those of connections."""

_PAUSE: Final = 0.05
"""Seconds until the next try where no connection can be accepted."""

_SEND: Final = struct.pack("ll", 30, 0)
"""How long the server waits for a client that does not read: seconds, microseconds."""

_SWEEP: Final = 0.5
"""Seconds between two looks for clients that were lost for too long."""


class GuardServer:
    """A guard server on a unix socket; ``close`` drains and ends it.

    ``parts`` are those of an embedded guard, which the server uses and does not close.
    ``listener`` is a listening unix socket that is used in place of one that the server makes;
    whoever has made the socket may go on with it after the server's end. Raises ``ConfigError``
    and ``ServerError`` where the socket can't be made.
    """

    def __init__(
        self, settings: Config, parts: Embedded, listener: sockets.socket | None = None
    ) -> None:
        if settings.server is None:
            message = f"{settings.source}: server: expected a table [server] with a url, found none"
            raise ConfigError(message)
        self._limits: ServerConfig = settings.server
        self._clients: Mapping[str, ClientConfig] | None = settings.clients
        self._parts = parts
        self._pins = ToolPins(parts.runs)
        self._uid = os.getuid()
        self._own = ClientConfig("", self._uid)
        if settings.clients is None:
            self._own = replace(
                self._own, agents=(EVERYTHING,), vouches_for=(EVERYTHING,), answers=True
            )
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._streams: dict[Stream, tuple[int, ClientConfig | None]] = {}
        self._channels = Channels(self._begin, self._limits.max_clients)
        self._shares: dict[int, Share] = {}
        self._ended = threading.Event()
        self.is_draining = False
        self.in_doubt = 0
        self.figures = Figures()
        self._is_inherited = listener is not None
        self._listener = _listen(self._limits.socket) if listener is None else listener
        self._listener.settimeout(0)
        self._wakes, self._woken = sockets.socketpair()
        self._threads = [
            threading.Thread(target=work, name=f"agentguard-{name}", daemon=True)
            for name, work in (("accept", self._accept), ("sweep", self._sweep))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        if self._is_inherited:
            return Path(self._listener.getsockname())
        return self._limits.socket

    def status(self) -> dict[str, Any]:
        """Return the figures, and how many clients, connections and calls under way there are."""
        with self._lock:
            sessions = list(self._sessions.values())
        return {
            **self.figures.as_json(),
            "clients": len(sessions),
            "connections": sum(one.connections for one in sessions),
            "calls": sum(one.running() for one in sessions),
            "in_doubt": self.in_doubt,
            "draining": self.is_draining,
            "isolation": dict(Counter(one.isolation for one in sessions)),
        }

    # --- connections ----------------------------------------------------------------------------

    def _accept(self) -> None:
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        while self._woken.fileno() not in dict(waiting.poll()):
            try:
                accepted, _address = self._listener.accept()
            except OSError:  # the client is gone already, or the server has no descriptor left
                self._ended.wait(_PAUSE)
                continue
            self._begin(accepted, None)

    def _begin(self, accepted: sockets.socket, launched: ClientConfig | None) -> None:
        """Serve a connection in a thread, or refuse the user at the other end.

        ``launched`` is the client of a program's connection.
        """
        share: Share | None = None
        try:
            uid = _peer_of(accepted) if launched is None else launched.uid
            if launched is None and uid not in (_ROOT, self._uid):  # who launch programs
                self._client_of(uid)
            with self._lock:
                share = self._share_of(uid)
                share.open()
            threading.Thread(
                target=self._serve,
                args=(accepted, uid, launched, share),
                name="agentguard-client",
                daemon=True,
            ).start()
        except ServerError as error:
            _refuse(accepted, error)
        except (OSError, RuntimeError):  # the client has gone; or no thread can be started
            accepted.close()
            with self._lock:
                if share is not None:
                    share.connections -= 1

    def _share_of(self, uid: int) -> Share:
        """Return what a user may hold; the caller has the lock."""
        share = self._shares.get(uid)
        if share is None:
            files = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_FILES, _OWN_FILES)
            each = files // (len(self._clients or ()) + 1)
            most = min(MOST_CONNECTIONS, each)
            share = self._shares[uid] = Share(most, self._limits.max_clients)
        return share

    def _serve(
        self, accepted: sockets.socket, uid: int, launched: ClientConfig | None, share: Share
    ) -> None:
        try:
            accepted.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, _SEND)
            stream = Stream(accepted, only_uid=uid)
            with self._lock:
                self._streams[stream] = (uid, launched)
            try:
                connection.serve(stream, self, self._parts)
            finally:
                with self._lock:
                    self._streams.pop(stream, None)
        except OSError:
            accepted.close()
        finally:
            with self._lock:
                share.connections -= 1

    def join(self, handle: str | None, stream: Stream) -> Session:
        """Return the session with this handle, or a new one; raises ``ServerError``."""
        uid, launched = self._streams[stream]
        client = self._client_of(uid) if launched is None else launched
        with self._lock:
            session = self._session(handle, client, uid)
            if session.connections >= self._limits.max_connections:
                message = f"this client has {session.connections} connections already"
                raise ServerError(message, code="server.busy")
            session.connections += 1
            return session

    def launch(self, header: Mapping[str, Any], stream: Stream) -> None:
        """Open a channel for a program, and answer with the program's end.

        Raises ``AgentguardError`` for a request that is refused.
        """
        requester, launched = self._streams[stream]
        if launched is not None:
            message = "a program that agentguard run has started starts no other one"
            raise ServerError(message, code="server.launch")
        if self.is_draining:
            raise ServerError("the guard server is about to end", code="server.draining")
        client = read_launch(header, requester, self._uid, self._parts.require_agent)
        with self._channels.open(client) as channel:
            stream.write_with(Frame({"client": client.name}), channel.fileno())

    def _session(self, handle: str | None, client: ClientConfig, uid: int) -> Session:
        if handle is not None:
            known = self._sessions.get(handle)
            if known is None or known.client is not client:
                message = "the server has no such session: it was started anew, or forgot it"
                raise ServerError(message, code="server.restarted")
            return known
        if self.is_draining:
            raise ServerError("the guard server is about to end", code="server.draining")
        share = self._share_of(uid)
        share.begin()
        isolation: Isolation = "same-user" if uid in (self._uid, _ROOT) else "separate-user"
        session = Session(client, isolation, self._limits, self._pins, share)
        self._sessions[session.handle] = session
        return session

    def _client_of(self, uid: int) -> ClientConfig:
        """Return the client that a user is; raises ``ServerError`` (``server.stranger``).

        With ``[clients]`` the server's own user looks after the server, and is no agent.
        """
        for client in (self._clients or {}).values():
            if client.uid == uid:
                return client
        if uid == self._uid:
            return self._own
        message = f"the user {uid} is no client of this guard server: see [clients]"
        raise ServerError(message, code="server.stranger")

    def leave(self, session: Session) -> None:
        """Note that a connection of the session has ended."""
        with self._lock:
            session.connections -= 1
            session.lost_at = time.monotonic()

    def forget(self, session: Session) -> None:
        """Forget a session; its calls under way stay in doubt."""
        with self._lock:
            if self._sessions.pop(session.handle, None) is not None:
                session.share.clients -= 1
        in_doubt = session.abandon()
        with self._lock:
            self.in_doubt += in_doubt

    # --- the end --------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Forget the clients that were lost for too long; their calls stay in doubt."""
        while not self._ended.wait(_SWEEP):
            before = time.monotonic() - self._limits.reconnect
            with self._lock:
                lost = [
                    one
                    for one in self._sessions.values()
                    if one.connections == 0 and one.lost_at < before
                ]
            for session in lost:
                self.forget(session)

    def close(self) -> None:
        """Accept no call any more, wait for the outcomes of running calls, and end."""
        self.is_draining = True
        until = time.monotonic() + self._limits.drain
        while time.monotonic() < until and self.status()["calls"]:
            time.sleep(0.02)
        self._ended.set()
        self._wakes.close()
        self._threads[0].join()
        self._woken.close()
        self._listener.close()
        if not self._is_inherited:
            with suppress(OSError):
                self._limits.socket.unlink()
        with self._lock:
            streams, sessions = list(self._streams), list(self._sessions.values())
        self._channels.close()
        for stream in streams:
            stream.close()
        for session in sessions:
            self.forget(session)


def _peer_of(accepted: sockets.socket) -> int:
    """Return the user of the process that has connected."""
    packed = accepted.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(packed)[1]
    return uid


def _refuse(accepted: sockets.socket, error: ServerError) -> None:
    """Say why a user gets no connection; the client has sent nothing yet."""
    with suppress(OSError):
        accepted.settimeout(0)
        accepted.sendall(frame.encode(Frame({"error": values.error(error)})))
    accepted.close()


def _listen(path: Path) -> sockets.socket:
    """Return a socket that listens at ``path``; a socket of a server that is gone is replaced.

    Raises ``ServerError`` (``server.address``).
    """
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.held(path.with_name(f"{path.name}.lock")):
            _remove_stale(path)
            listener.bind(str(path))
            path.chmod(0o666)  # whoever reaches the folder may connect; the kernel says who
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"the guard server can't listen at {path}: {error.strerror or error}"
        raise ServerError(message, code="server.address") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        message = f"there is a file at {path} that is no socket: remove it, or name another path"
        raise ServerError(message, code="server.address")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    message = f"another guard server listens at {path}: stop that server first"
    raise ServerError(message, code="server.address")
