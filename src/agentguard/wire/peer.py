"""The user of the process at the other end of a unix socket, as the kernel tells it."""

from __future__ import annotations

import socket
import struct
from typing import Final

ROOT: Final = 0
"""The user who reaches the files and the memory of every process of the machine."""

CREDENTIALS: Final = struct.Struct("3i")
"""A process, its user and its group, as the kernel names them (``struct ucred``, unix(7))."""


def peer_of(connected: socket.socket) -> int:
    """Return the user who connected a unix socket, or who listens at its other end.

    The kernel notes the user at ``connect`` and at ``listen`` (``SO_PEERCRED``, unix(7)). In
    another user namespace, a user without a number there has the overflow number (65534).
    """
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    uid: int = CREDENTIALS.unpack(packed)[1]
    return uid
