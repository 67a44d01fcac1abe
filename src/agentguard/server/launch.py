"""Programs that ``agentguard run`` starts: what they may be, and where their connections come from.

The launcher, under root or the server's own user, asks for a *channel* for one agent and one user.
The server makes the channel, and sends one end to the launcher, which the program inherits. Over
the channel the program gets as many connections as it needs; each is a client of its own kind,
with the rights of the channel. The kernel says, for each message on the channel and on its
connections, which user has sent the message.

A channel is a socket for packets (``SOCK_SEQPACKET``), and each of the server's answers serves any
of the processes that ask, so that a program and its forked processes need no lock for the channel.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from agentguard.domain.config.clients import LAUNCHED, ClientConfig
from agentguard.errors import AgentguardError, DecodeError, ServerError
from agentguard.server.disclosure import disclosed
from agentguard.server.peer import Peer
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.peer import ROOT
from agentguard.wire.stream import EndedError, Stream

_LOGGER = logging.getLogger("agentguard")

_NOBODY: Final = (1 << 32) - 1
"""The number that is no user's."""

_BUFFER: Final = 4096
"""Bytes of answers that a program may leave unread, so that few descriptors wait in the kernel."""

_PATIENCE: Final = struct.pack("ll", 10, 0)
"""How long the server waits for a program that does not read its answers: seconds, microseconds."""

Begin = Callable[[socket.socket, ClientConfig], None]
"""Serves a connection of a client, in a thread of its own."""


def read_launch(
    header: Any, requester: int, own: int, require_agent: Callable[[str], None]
) -> ClientConfig:
    """Return what a program may do, from the request of its launcher.

    ``requester`` is the user of the launcher, ``own`` the server's. Raises ``ServerError``
    (``server.launch``) for a user who may not start the program, ``ConfigError`` for an agent that
    the configuration does not have, and ``DecodeError``.
    """
    uid = header.get("uid")
    if type(uid) is not int or not 0 <= uid < _NOBODY:
        raise DecodeError("expected the number of a user", code="frame.malformed")
    _require_launcher(requester, uid, own)
    agent = values.text(header.get("agent"))
    require_agent(agent)
    vouches_for = values.texts(header.get("vouches_for"))
    return ClientConfig(f"{LAUNCHED}{agent}", uid, (agent,), vouches_for)


def _require_launcher(requester: int, uid: int, own: int) -> None:
    if requester not in (ROOT, own):
        message = "only root and the server's own user start programs for the guard server"
    elif requester != ROOT and uid != own:
        message = f"only root starts a program under another user ({uid})"
    elif uid == ROOT != own:
        message = "a program under root reaches the server's keys: name a user with --user"
    else:
        return
    raise ServerError(message, code="server.launch")


class Channels:
    """The channels of the programs that were started; ``begin`` serves each new connection."""

    def __init__(self, begin: Begin, most: int) -> None:
        self._begin = begin
        self._most = most
        self._lock = threading.Lock()
        self._open: set[Stream] = set()

    def launch(
        self, header: Any, peer: Peer, stream: Stream, require_agent: Callable[[str], None]
    ) -> None:
        """Answer a launcher on ``stream`` with a program's end of a new channel.

        Raises ``AgentguardError`` for a request that is refused.
        """
        if peer.client is not None or peer.uid is None:
            message = "only a process at the server's socket starts programs"
            raise ServerError(message, code="server.launch")
        client = read_launch(header, peer.uid, os.getuid(), require_agent)
        with self.open(client) as channel:
            stream.write_with(Frame({"client": client.name}), channel.fileno())

    def open(self, client: ClientConfig) -> socket.socket:
        """Open a channel for a program; return the program's end. Raises ``ServerError``."""
        ours, theirs = _pair(socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        channel = Stream(ours, only_uid=client.uid)
        with self._lock:
            is_full = len(self._open) >= self._most
            if not is_full:
                self._open.add(channel)
        if is_full:
            channel.close()
            theirs.close()
            message = f"the guard server has {self._most} programs, which is the limit"
            raise ServerError(message, code="server.busy")
        work = threading.Thread(
            target=self._serve, args=(channel, client), name="agentguard-channel", daemon=True
        )
        try:
            work.start()
        except RuntimeError as error:
            self._end(channel)
            theirs.close()
            message = f"the guard server has no free thread ({error}): wait"
            raise ServerError(message, code="server.busy") from error
        return theirs

    def _serve(self, channel: Stream, client: ClientConfig) -> None:
        """Answer each packet with a connection, until no process has the other end any more."""
        try:
            while True:
                _require_request(channel.read_packet())
                self._answer(channel, client)
        except (EndedError, OSError):
            pass
        except DecodeError as error:
            _LOGGER.warning("the channel of %s is closed: %s [%s]", client.name, error, error.code)
        finally:
            self._end(channel)

    def _end(self, channel: Stream) -> None:
        with self._lock:
            self._open.discard(channel)
        channel.close()

    def _answer(self, channel: Stream, client: ClientConfig) -> None:
        try:
            ours, theirs = _pair(socket.SOCK_STREAM)
        except AgentguardError as error:
            channel.write(disclosed(Frame({"error": values.error(error)}), lambda: True))
            return
        try:
            with theirs:
                channel.write_with(Frame({}), theirs.fileno())
        except OSError:
            ours.close()
            raise
        self._begin(ours, client)

    def close(self) -> None:
        """Close all channels: the programs get no further connections."""
        with self._lock:
            channels = list(self._open)
        for channel in channels:
            channel.close()


def _require_request(packet: Frame) -> None:
    if packet.header.get("op") != "connection":
        raise DecodeError("a channel gives connections", code="frame.malformed")


def _pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        message = f"the guard server has no free descriptor ({error.strerror}): wait"
        raise ServerError(message, code="server.busy") from error
