"""``GuardServer``: listens on a unix socket, and serves each connection in a thread.

A thread serves one connection with blocking reads and writes; the threads that write to the log at
the same time share one commit (``store/store.py``). The kernel says which user is at the other end
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.domain.config import Config
from agentguard.domain.config.clients import ClientConfig
from agentguard.errors import ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server import connection, tls, unix_socket
from agentguard.server.launch import Channels
from agentguard.server.peer import Peer
from agentguard.server.sessions import Sessions
from agentguard.server.share import REMOTE, Owner
from agentguard.wire.peer import ROOT, peer_of
from agentguard.wire.stream import Stream

_LOGGER = logging.getLogger("agentguard")


_PAUSE: Final = 0.05
"""Seconds until the next try where no connection can be accepted."""

_SEND: Final = struct.pack("ll", 30, 0)
"""How long the server waits for a client that does not read: seconds, microseconds."""

_LAST_WORDS: Final = 1.0
"""Seconds in which the connections of a server that ends say what the server has taken."""

_SWEEP: Final = 0.5
"""Seconds between two looks for clients that were lost for too long."""


class _Admitted(NamedTuple):
    """A connection, the user at its other end (None: another machine), and the client if known.

    ``ends_at`` is when a certificate ends (Unix time).
    """

    stream: Stream
    uid: int | None
    client: ClientConfig | None
    ends_at: float | None = None


class GuardServer:
    """A guard server on a unix socket; ``close`` drains and ends it.

    ``parts`` are those of an embedded guard, which the server uses and does not close.
    ``listener`` is a listening unix socket that is used in place of one that the server makes;
    whoever has made the socket may go on with it after the server's end. ``sessions`` are the
    clients. Raises ``ConfigError`` and ``ServerError`` where the socket can't be made.
    """

    def __init__(
        self, settings: Config, parts: Embedded, listener: sockets.socket | None = None
    ) -> None:
        self._limits = settings.require_server()
        self._parts = parts
        self._uid = os.getuid()
        self.sessions = Sessions(settings, self._limits, parts)
        self._lock = self.sessions.lock
        self._streams: set[Stream] = set()
        self._channels = Channels(self._begin, self._limits.max_clients)
        self._ended = threading.Event()
        self._is_inherited = listener is not None
        self._listeners: dict[sockets.socket, Callable[[sockets.socket], None]] = {}
        if self._limits.tls is not None:  # first: where it fails, no file of a socket stays behind
            context = tls.context_of(self._limits.tls, takes_tokens=self.sessions.takes_tokens)
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
            # whoever reaches the folder may connect; the kernel says who
            return unix_socket.listen_unix(self._limits.socket(), mode=0o666)
        except BaseException:
            for listener in self._listeners:
                listener.close()
            raise

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        return Path(self._local.getsockname()) if self._is_inherited else self._limits.socket()

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
                self.sessions.client_of(uid)

            def admitted() -> _Admitted:
                return _Admitted(Stream(accepted, only_uid=uid, is_served=True), uid, launched)

            return uid, admitted

        self._start(accepted, admit)

    def _begin_remote(self, accepted: sockets.socket, context: ssl.SSLContext) -> None:
        """Serve a connection from another machine in a thread."""

        def admitted() -> _Admitted:
            handshakes = self.sessions.handshakes
            stream, known = tls.accept(accepted, context, self.sessions.clients, handshakes)
            return _Admitted(stream, None, *(known or (None, None)))

        self._start(accepted, lambda: (REMOTE, admitted))

    def _start(
        self, accepted: sockets.socket, admit: Callable[[], tuple[Owner, Callable[[], _Admitted]]]
    ) -> None:
        peer: Peer | None = None
        try:
            accepted.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, _SEND)
            owner, admitted = admit()
            with self._lock:
                share = self.sessions.shares.of(owner)
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
            stream, peer.uid, peer.client, ends_at = admitted()
            if ends_at is not None:
                peer.limit(ends_at)
            with self._lock:
                self._streams.add(stream)
            try:
                if peer.uid is None and peer.client is not None:
                    self.sessions.count_for(peer, peer.client)
                connection.serve(stream, self.sessions, self._channels, self._parts, peer)
            finally:
                stream.close()
                with self._lock:
                    self._streams.discard(stream)
        except ServerError as error:
            if peer.share.may_warn():
                _LOGGER.warning("a connection of another machine is refused: %s", error)
        except OSError:
            pass
        finally:
            self.sessions.handshakes.end(peer.accepted)
            peer.accepted.close()
            with self._lock:
                peer.share.connections -= 1

    # --- the end --------------------------------------------------------------------------------

    def _sweep(self) -> None:
        while not self._ended.wait(_SWEEP):
            self.sessions.forget_lost()

    def close(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Accept no call any more, wait for outcomes unless it ``is_hurried``, and end."""
        self.sessions.is_draining = True
        until = time.monotonic() + self._limits.drain
        while time.monotonic() < until and not is_hurried() and self.sessions.running():
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
            streams = list(self._streams)
        self._channels.close()
        for stream in streams:
            stream.end_reading()
        until = time.monotonic() + _LAST_WORDS
        while time.monotonic() < until and self._streams:
            time.sleep(0.01)
        for stream in streams:
            stream.close()
        self.sessions.end()


def _uid_of(launched: ClientConfig) -> int:
    assert launched.uid is not None  # noqa: S101  a program has a user
    return launched.uid
