"""``Stream``: reads and writes frames on a connected socket, one at a time.

On the server's side of a unix socket, ``Stream`` also checks who has sent each part of a frame: the
kernel adds the sender's credentials to each message (``SO_PASSCRED``). A descriptor that one
process passes on to a process of another user is therefore of no use to that process. A server
sends a descriptor to its client at times, and takes none.
"""

from __future__ import annotations

import array
import os
import socket
import time
from contextlib import suppress
from typing import Final

from agentguard.errors import DecodeError
from agentguard.wire import frame
from agentguard.wire.frame import Frame
from agentguard.wire.peer import CREDENTIALS

_ANCILLARY: Final = socket.CMSG_SPACE(CREDENTIALS.size)
_DESCRIPTOR: Final = array.array("i").itemsize
_CHUNK: Final = 1 << 16

REST: Final = 10.0
"""Seconds that the rest of a frame may take on the server's side, once the frame has begun."""


class EndedError(ConnectionError):
    """The other end has closed the connection between two frames."""


class Stream:
    """A connected socket. ``only_uid`` is the user whose messages count; None checks nothing.

    The methods raise ``OSError`` where the connection fails, ``EndedError`` where it has ended, and
    ``DecodeError`` (``frame.malformed``, ``frame.too_large``, ``frame.sender``) for bytes that are
    no frame, or come from another user.

    ``is_served`` is for the server's side: the rest of a frame has to come within ``REST`` seconds,
    so the other end does not hold the reading thread up for ever.
    """

    def __init__(
        self, connected: socket.socket, *, only_uid: int | None = None, is_served: bool = False
    ) -> None:
        self._socket = connected
        self._only_uid = only_uid
        self._is_served = is_served
        self._buffer = bytearray()
        if only_uid is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def read(self, *, within: float | None = None, at_most: int = frame.MAX_FRAME) -> Frame:
        """Return the next frame, of ``at_most`` so many bytes; waits for it as ``begin`` does."""
        size, header = self.begin(within=within, at_most=at_most)
        return self.rest(size, header)

    def begin(
        self, *, within: float | None = None, at_most: int = frame.MAX_FRAME
    ) -> tuple[int, int]:
        """Wait for the next frame; return the bytes after its prefix, and those of the header.

        On the server's side, ``within`` is how many seconds the prefix may take; None waits for the
        first byte for ever. Raises ``TimeoutError`` past a time limit.
        """
        until = None if within is None else time.monotonic() + within
        return frame.rest_of(self._take(frame.PREFIX, until, may_end=True), at_most)

    def rest(self, size: int, header: int) -> Frame:
        """Return the frame that has begun, with the numbers that ``begin`` has returned."""
        return frame.decode(self._take(size, None), header)

    def read_packet(self) -> Frame:
        """Return the next packet of a ``SOCK_SEQPACKET`` socket, which is a short frame."""
        packet = self._receive(_CHUNK)
        if not packet:
            raise EndedError("the connection has ended")
        size, header = frame.rest_of(packet[: frame.PREFIX].ljust(frame.PREFIX, b"\0"))
        if len(packet) != frame.PREFIX + size:
            raise DecodeError("a packet is no frame", code="frame.malformed")
        return frame.decode(packet[frame.PREFIX :], header)

    def write(self, message: Frame) -> None:
        """Send a frame; raises ``EncodeError`` as ``frame.encode`` does."""
        self._socket.sendall(frame.encode(message))

    def write_with(self, message: Frame, descriptor: int) -> None:
        """Send a short frame and a copy of a descriptor; raises as ``write`` does."""
        data = frame.encode(message)
        if socket.send_fds(self._socket, [data], [descriptor]) != len(data):
            raise OSError("a short frame was not sent as a whole")

    def read_with(self) -> tuple[Frame, int | None]:
        """Return the next frame, and the descriptor that comes with the frame, or None.

        The descriptor is the caller's, and no child process inherits the descriptor.
        """
        data, ancillary, _flags, _address = self._socket.recvmsg(
            _CHUNK, socket.CMSG_LEN(_DESCRIPTOR), socket.MSG_CMSG_CLOEXEC
        )
        descriptor = _descriptor(ancillary)
        self._buffer += data
        try:
            return self.read(), descriptor
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise

    def end_reading(self) -> None:
        """Take no more from the other end: what has come is read, and then the connection ends."""
        with suppress(OSError):
            # TLS's own method would end the encryption of what is still written
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def wait_at_most(self, seconds: float) -> None:
        """Let each further read and write take so many seconds at most; raises ``OSError``."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the connection: a read that waits in another thread ends."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's copy of a connection that another process goes on with."""
        self._socket.close()

    def _take(self, size: int, until: float | None, *, may_end: bool = False) -> bytes:
        """Return the next ``size`` bytes; ``may_end`` where the connection may end before them.

        ``until`` is the end of the time for them (of the monotonic clock), None for no end yet.
        """
        buffer = self._buffer
        is_limited = False
        while len(buffer) < size:
            if self._is_served and (buffer or until is not None or not may_end):
                until = time.monotonic() + REST if until is None else until
                self._limit(until)
                is_limited = True
            data = self._receive(_CHUNK)
            if not data:
                if may_end and not buffer:
                    raise EndedError("the connection has ended")
                raise DecodeError("a frame ends too early", code="frame.malformed")
            buffer += data
        if is_limited:
            self._socket.settimeout(None)
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken

    def _limit(self, until: float) -> None:
        """Let the next read of the socket wait until then; raises ``TimeoutError``."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other end takes too long to send a frame")
        self._socket.settimeout(left)

    def _receive(self, size: int) -> bytes:
        if self._only_uid is None:
            return self._socket.recv(size)
        data, ancillary, flags, _address = self._socket.recvmsg(size, _ANCILLARY)
        if data:
            self._require_sender(ancillary, flags)
        return data

    def _require_sender(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        """Raise unless the kernel says that the expected user has sent the message.

        A message that also brings descriptors is refused: they would stay open in this process.
        """
        senders = [
            CREDENTIALS.unpack(data)[1]
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
            and len(data) == CREDENTIALS.size
        ]
        if senders != [self._only_uid] or len(ancillary) != 1 or flags & socket.MSG_CTRUNC:
            raise DecodeError("a message comes from another user", code="frame.sender")


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the descriptor that came with a message, for which there was room once."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) == _DESCRIPTOR:
            return array.array("i", data)[0]
    return None
