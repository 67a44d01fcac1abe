"""The unix socket of a gateway: a file that its own user alone may connect to.

The kernel says which user is at the other end of a connection (``SO_PEERCRED``, unix(7)).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agentguard import ConfigError

_CREDENTIALS: Final = struct.Struct("3i")
BACKLOG: Final = 128
"""The most connections that wait to be accepted."""


def bound(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``; one at which nobody listens is replaced.

    The file has mode 0600 from its beginning. Raises ``ConfigError`` (``server.address``).
    """
    if not hasattr(socket, "SO_PEERCRED"):
        message = "this system does not say who connects to a unix socket: listen on loopback"
        raise ConfigError(message, code="server.address")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        os.fchmod(listening.fileno(), 0o600)  # before bind, which makes the file with this mode
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        message = f"the gateway can't listen at {path}: {error.strerror or error}"
        raise ConfigError(message, code="server.address") from error
    except BaseException:
        listening.close()
        raise
    return listening


def remove(path: Path) -> None:
    """Remove the file of a socket at the end of its gateway."""
    with suppress(OSError):
        path.unlink()


def is_own_user(connected: Any) -> bool:
    """Return whether the process at the other end of a unix socket has this process's user."""
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _process, user, _group = _CREDENTIALS.unpack(packed)
    return bool(user == own_user())


def own_user() -> int:
    """Return the number of this process's user."""
    return os.geteuid()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        message = f"there is a file at {path} that is no socket: remove it, or name another path"
        raise ConfigError(message, code="server.address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink()
            return
    message = f"another gateway listens at {path}: stop that one first"
    raise ConfigError(message, code="server.address")
