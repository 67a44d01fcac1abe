"""The unix socket of a guard server: where it listens, and which user is at the other end."""

from __future__ import annotations

import socket as sockets
import stat
import struct
from pathlib import Path
from typing import Final

from agentguard.errors import ServerError
from agentguard.storage import lock

_PEER: Final = struct.Struct("3i")
_BACKLOG: Final = 256


def listen(path: Path) -> sockets.socket:
    """Return a socket that listens at ``path``; a socket at which nobody listens is replaced.

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
        except ConnectionRefusedError:  # nobody listens
            path.unlink()
            return
    message = f"another guard server listens at {path}: stop that server first"
    raise ServerError(message, code="server.address")


def peer_of(accepted: sockets.socket) -> int:
    """Return the user of the process that has connected."""
    packed = accepted.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(packed)[1]
    return uid
