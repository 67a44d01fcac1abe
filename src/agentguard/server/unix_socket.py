"""A unix socket at which a server listens: its file, and the lock under which the file is made.

The guard server and the MCP gateway listen at such sockets.
"""

from __future__ import annotations

import os
import socket as sockets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agentguard.errors import ServerError
from agentguard.storage import lock

_BACKLOG: Final = 256


def listen_unix(path: Path, *, mode: int) -> sockets.socket:
    """Return a socket that listens at ``path``; a socket at which nobody listens is replaced.

    The file has the permissions ``mode`` from its beginning. Of two servers that begin at the same
    time, one listens, and the other one raises. Raises ``ServerError`` (``server.address``), and
    ``StorageError`` where the lock beside the file can't be had.
    """
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            _remove_stale(path)
            os.fchmod(listener.fileno(), mode)  # bind makes the file with this mode at most
            listener.bind(str(path))
            path.chmod(mode)
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"a server can't listen at {path}: {error.strerror or error}"
        raise ServerError(message, code="server.address") from error
    except BaseException:
        listener.close()
        raise
    return listener


def remove(path: Path) -> None:
    """Remove the socket's file, while the server still listens: no other server's file is there."""
    with suppress(OSError):
        path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock under which one server at a time makes its socket, and leave no lock's file."""
    name = path.with_name(f"{path.name}.lock")
    while True:
        with lock.acquire(name) as file:
            if _is_at(name, file.fileno()):
                try:
                    yield
                finally:
                    name.unlink()
                return


def _is_at(name: Path, number: int) -> bool:
    """Whether an open file still has this name: the server before may have removed the file."""
    try:
        return os.path.samestat(os.fstat(number), name.lstat())
    except FileNotFoundError:
        return False


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
    message = f"another server listens at {path}: stop that server first"
    raise ServerError(message, code="server.address")
