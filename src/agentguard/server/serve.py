"""``GuardServer``: listens on a unix socket, and serves each connection in a thread.

A thread serves one connection with blocking reads and writes; the threads that write to the log at
the same time share one commit (``storage/log.py``). The kernel says which user is at the other end
of the socket. For a client on another machine, a certificate or a token says who the client is.
"""

from __future__ import annotations

import logging
import os
import select
import socket as sockets
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.call.client import Isolation
from agentguard.domain.config import Config
from agentguard.domain.config.server import EVERYTHING, ClientConfig, ServerConfig
from agentguard.domain.issuer_keys import open_issuers
from agentguard.errors import ConfigError, ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server import connection, tls, unix_socket
from agentguard.server.figures import Figures
from agentguard.server.launch import Channels, read_launch
from agentguard.server.peer import Peer
from agentguard.server.pins import ToolPins
from agentguard.server.session import Session, ending, stranger
from agentguard.server.share import REMOTE, Owner, Shares, owner_of
from agentguard.server.tokens import TokenClients, with_cause
from agentguard.wire.frame import Frame
from agentguard.wire.peer import ROOT, peer_of
from agentguard.wire.stream import Stream

_LOGGER = logging.getLogger("agentguard")


_PAUSE: Final = 0.05
"""Seconds until the next try where no connection can be accepted."""

_SEND: Final = struct.pack("ll", 30, 0)
"""How long the server waits for a client that does not read: seconds, microseconds."""

_SWEEP: Final = 0.5
"""Seconds between two looks for clients that were lost for too long."""


class _Admitted(NamedTuple):
    """A connection, the user at its other end (None: another machine), and the client if known."""

    stream: Stream
    uid: int | None
    client: ClientConfig | None


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
        self._peers: dict[Stream, Peer] = {}
        self._channels = Channels(self._begin, self._limits.max_clients)
        self._shares = Shares(self._limits.max_clients, len(self._clients or ()))
        self._handshakes = tls.Handshakes(self._shares.of(REMOTE).most_connections // 2)
        self._tokens = _token_clients(settings)
        self._ended = threading.Event()
        self.is_draining = False
        self.in_doubt = 0
        self.figures = Figures()
        self._is_inherited = listener is not None
        self._listeners: dict[sockets.socket, Callable[[sockets.socket], None]] = {}
        if self._limits.tls is not None:  # first: where it fails, no file of a socket stays behind
            context = tls.context_of(self._limits.tls, takes_tokens=self._tokens is not None)
            begin = partial(self._begin_remote, context=context)
            self._listeners[tls.listen(self._limits.tls)] = begin
        self._local = self._at_socket() if listener is None else listener
        self._listeners[self._local] = lambda accepted: self._begin(accepted, None)
        self._wakes, self._woken = sockets.socketpair()
        self._threads = [
            threading.Thread(target=work, name=f"agentguard-{name}", daemon=True)
            for name, work in (("accept", self._accept), ("sweep", self._sweep))
        ]
        for thread in self._threads:
            thread.start()

    def _at_socket(self) -> sockets.socket:
        try:
            return unix_socket.listen(self._limits.socket())
        except BaseException:
            for listener in self._listeners:
                listener.close()
            raise

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        return Path(self._local.getsockname()) if self._is_inherited else self._limits.socket()

    def status(self, asking: Session | None = None) -> dict[str, Any]:
        """Return the figures, and the clients, connections and calls but those of ``asking``."""
        with self._lock:
            sessions = [one for one in self._sessions.values() if one is not asking]
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
        waiting.register(self._woken, select.POLLIN)
        listeners = {listener.fileno(): listener for listener in self._listeners}
        for listener in listeners.values():
            listener.settimeout(0)
            waiting.register(listener, select.POLLIN)
        while self._woken.fileno() not in (ready := dict(waiting.poll())):
            for listener in (listeners[number] for number in ready):
                self._accept_at(listener)

    def _accept_at(self, listener: sockets.socket) -> None:
        try:
            accepted, _address = listener.accept()
        except OSError:  # the client is gone already, or the server has no descriptor left
            self._ended.wait(_PAUSE)
            return
        accepted.settimeout(None)
        self._listeners[listener](accepted)

    def _begin(self, accepted: sockets.socket, launched: ClientConfig | None) -> None:
        """Serve a connection in a thread, or refuse the user at the other end.

        ``launched`` is the client of a program's connection.
        """

        def admit() -> tuple[Owner, Callable[[], _Admitted]]:
            uid = peer_of(accepted) if launched is None else _uid_of(launched)
            if launched is None and uid not in (ROOT, self._uid):  # who launch programs
                self._client_of(uid)

            def admitted() -> _Admitted:
                return _Admitted(Stream(accepted, only_uid=uid, is_served=True), uid, launched)

            return uid, admitted

        self._start(accepted, admit)

    def _begin_remote(self, accepted: sockets.socket, context: ssl.SSLContext) -> None:
        """Serve a connection from another machine in a thread."""

        def admitted() -> _Admitted:
            stream, client = tls.accept(accepted, context, self._clients or {}, self._handshakes)
            return _Admitted(stream, None, client)

        self._start(accepted, lambda: (REMOTE, admitted))

    def _start(
        self, accepted: sockets.socket, admit: Callable[[], tuple[Owner, Callable[[], _Admitted]]]
    ) -> None:
        peer: Peer | None = None
        try:
            accepted.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, _SEND)
            owner, admitted = admit()
            with self._lock:
                share = self._shares.of(owner)
                share.open()
                peer = Peer(accepted, share)
            work = partial(self._serve, admitted, peer)
            threading.Thread(target=work, name="agentguard-client", daemon=True).start()
        except ServerError as error:
            connection.refuse(accepted, error)
        except (OSError, RuntimeError):  # the client has gone; or no thread can be started
            accepted.close()
            with self._lock:
                if peer is not None:
                    peer.share.connections -= 1

    def _serve(self, admitted: Callable[[], _Admitted], peer: Peer) -> None:
        try:
            stream, peer.uid, peer.client = admitted()
            with self._lock:
                self._peers[stream] = peer
            try:
                if peer.uid is None and peer.client is not None:
                    self._count_for(peer, peer.client)
                connection.serve(stream, self, self._parts, peer)
            finally:
                stream.close()
                with self._lock:
                    self._peers.pop(stream, None)
        except ServerError as error:
            if peer.share.may_warn():
                _LOGGER.warning("a connection of another machine is refused: %s", error)
        except OSError:
            pass
        finally:
            self._handshakes.end(peer.accepted)
            peer.accepted.close()
            with self._lock:
                peer.share.connections -= 1

    def _count_for(self, peer: Peer, client: ClientConfig) -> None:
        """Count a connection for its client, once the client on another machine is known."""
        with self._lock:
            own = self._shares.of(owner_of(None, client))
            own.open()
            peer.share.connections -= 1
            peer.share = own

    def join(self, handle: str | None, stream: Stream, token: object) -> Session:
        """Return the session with this handle, or a new one; raises ``ServerError``.

        ``token`` is that of a client on another machine without a certificate, and None for others.
        """
        peer = self._peers[stream]
        client, uid = self._client(peer, token), peer.uid
        if handle is None:  # who comes back has a place
            self._make_room(owner_of(uid, client))
        with self._lock:
            session = self._session(handle, client, uid)
            if session.connections >= self._limits.max_connections:
                message = f"this client has {session.connections} connections already"
                raise ServerError(message, code="server.busy")
            session.connections += 1
            return session

    def _client(self, peer: Peer, token: object) -> ClientConfig:
        """Return the client of a connection that greets; raises ``ServerError``."""
        if peer.needs_token and self._tokens is not None:
            try:
                client, ends_at = self._tokens.client_of(token)
            except ServerError as error:
                if peer.share.may_warn():
                    _LOGGER.warning("a client is refused: %s", with_cause(error))
                raise
            self._count_for(peer, client)
            self._handshakes.end(peer.accepted)
            peer.limit(ends_at)
            peer.client = client
        elif token is not None:
            message = "the server knows this client without a token: leave the token out"
            raise ServerError(message, code="server.token")
        return self._client_of(peer.uid) if peer.client is None else peer.client

    def _make_room(self, owner: Owner) -> None:
        """Forget the client that was lost first, where an owner has as many as it may have."""
        with self._lock:
            share = self._shares.of(owner)
            is_full = share.clients >= share.most_clients
            mine = [one for one in self._sessions.values() if is_full and one.share is share]
            lost = [one for one in mine if one.connections == 0]
        if lost:
            self.forget(min(lost, key=lambda one: one.lost_at))

    def launch(self, header: Mapping[str, Any], stream: Stream) -> None:
        """Open a channel for a program, and answer with the program's end.

        Raises ``AgentguardError`` for a request that is refused.
        """
        peer = self._peers[stream]
        if peer.client is not None or peer.uid is None:
            message = "only a process at the server's socket starts programs"
            raise ServerError(message, code="server.launch")
        if self.is_draining:
            raise ending()
        client = read_launch(header, peer.uid, self._uid, self._parts.require_agent)
        with self._channels.open(client) as channel:
            stream.write_with(Frame({"client": client.name}), channel.fileno())

    def _session(self, handle: str | None, client: ClientConfig, uid: int | None) -> Session:
        if handle is not None:
            known = self._sessions.get(handle)
            if known is None or known.client is not client:
                message = "the server has no such session: it was started anew, or forgot it"
                raise ServerError(message, code="server.restarted")
            return known
        if self.is_draining:
            raise ending()
        share = self._shares.of(owner_of(uid, client))
        share.begin()
        session = Session(client, self._isolation(uid), self._limits, self._pins, share)
        self._sessions[session.handle] = session
        return session

    def _isolation(self, uid: int | None) -> Isolation:
        if uid is None:
            return "remote"
        return "same-user" if uid in (self._uid, ROOT) else "separate-user"

    def _client_of(self, uid: int | None) -> ClientConfig:
        """Return the client that a user is; raises ``ServerError`` (``server.stranger``).

        With ``[clients]`` the server's own user looks after the server, and is no agent.
        """
        for client in (self._clients or {}).values():
            if client.uid is not None and client.uid == uid:
                return client
        if uid == self._uid:
            return self._own
        raise stranger(uid)

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

    def close(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Accept no call any more, wait for outcomes unless it ``is_hurried``, and end."""
        self.is_draining = True
        until = time.monotonic() + self._limits.drain
        while time.monotonic() < until and self.status()["calls"] and not is_hurried():
            time.sleep(0.02)
        self._ended.set()
        self._wakes.close()
        self._threads[0].join()
        self._woken.close()
        if not self._is_inherited:
            unix_socket.remove(self._limits.socket())
        for listener in self._listeners:
            listener.close()
        with self._lock:
            streams, sessions = list(self._peers), list(self._sessions.values())
        self._channels.close()
        for stream in streams:
            stream.close()
        for session in sessions:
            self.forget(session)


def _token_clients(settings: Config) -> TokenClients | None:
    """Return the clients with tokens, None without one; raises ``ConfigError``."""
    clients = [one for one in (settings.clients or {}).values() if one.issuer is not None]
    return TokenClients(open_issuers(settings), clients) if clients else None


def _uid_of(launched: ClientConfig) -> int:
    assert launched.uid is not None  # noqa: S101  a program has a user
    return launched.uid
