"""What a service manager such as systemd gives to a server, and wants to hear from the server.

A service manager may listen at the socket itself, and hand the listening socket over as descriptor
3 (``sd_listen_fds(3)``): clients that come while the server starts anew wait, and are not refused.
The manager hears when the server is ready, and when the server ends (``sd_notify(3)``).
"""

from __future__ import annotations

import os
import socket
from typing import Final

from agentguard.errors import ServerError

_FIRST: Final = 3
"""The first descriptor that a service manager hands over."""


def inherited_socket() -> socket.socket | None:
    """Return the listening socket of the service manager; None where there is none.

    The variables that announce the socket are taken out of the environment, since they are of no
    use to programs that this process starts. Raises ``ServerError`` (``server.address``) for
    anything else than one listening unix socket.
    """
    for_process, number = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if for_process != str(os.getpid()):
        return None
    if number != "1":
        message = f"the service manager hands over {number or 'no'} sockets: expected one"
        raise ServerError(message, code="server.address")
    try:
        inherited = socket.socket(fileno=_FIRST)
    except OSError as error:
        message = f"the service manager hands over no socket: {error.strerror}"
        raise ServerError(message, code="server.address") from error
    inherited.set_inheritable(False)
    if not _listens(inherited):
        inherited.close()
        message = (
            "the service manager hands over a socket that is no listening unix socket: see "
            "ListenStream in the .socket unit"
        )
        raise ServerError(message, code="server.address")
    return inherited


def _listens(inherited: socket.socket) -> bool:
    return (inherited.family, inherited.type) == (
        socket.AF_UNIX,
        socket.SOCK_STREAM,
    ) and inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def notify(state: str) -> None:
    """Tell the service manager a state, such as ``READY=1``; nothing happens without a manager.

    Raises ``ServerError`` (``server.address``) where the manager can't be told.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    place = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(state.encode(), place)
    except OSError as error:
        message = f"the service manager at {address} can't be told of the server: {error.strerror}"
        raise ServerError(message, code="server.address") from error
