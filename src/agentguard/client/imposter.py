"""Looks at who serves a unix socket: where anybody can make a socket, anybody can be the server.

The kernel names the user who listens (``wire/peer.py``). A client takes root, its own user, and
whoever owns the folder of the socket, as long as nobody else could have made that folder.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentguard.errors import ServerError
from agentguard.wire.peer import ROOT, peer_of

UNMAPPED: Final = 65_534
"""The number of every user whom a user namespace does not have (user_namespaces(7))."""

_MOST_LINKS: Final = 40
"""The most links on a path; Linux follows as many (path_resolution(7))."""


def require_server(connected: socket.socket, path: Path) -> None:
    """Raise ``ServerError`` (``server.imposter``) unless the process at ``path`` may be the server.

    ``connected`` is a socket that has connected to ``path``. Raises ``OSError`` where a folder on
    the path can't be looked at.
    """
    peer, own = peer_of(connected), os.getuid()
    if peer in (ROOT, own) and peer != UNMAPPED:
        return
    problem = _problem(path, peer, own)
    if problem is not None:
        message = (
            f"the user {peer} serves {path}, and may be no guard server: {problem}. Put the socket "
            "into a folder that belongs to the server's user, and that nobody else can write, such "
            "as /run/agentguard; the folders above have to belong to root"
        )
        raise ServerError(message, code="server.imposter")


def _problem(path: Path, peer: int, own: int) -> str | None:
    """Say how somebody else than ``peer`` could have put the socket there; None for no way."""
    folder = None
    for folder, entry in _steps(path):
        above, here = folder.stat(), entry.lstat()
        if above.st_uid not in (ROOT, own, peer):
            return f"{folder} belongs to the user {above.st_uid}"
        if not above.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            continue
        if not above.st_mode & stat.S_ISVTX:
            return f"others can write {folder}"
        if here.st_uid not in (ROOT, own) or here.st_uid == UNMAPPED:
            return f"everybody can make an entry in {folder}, and {entry} is of user {here.st_uid}"
    if folder is None or folder.stat().st_uid != peer:
        return f"the folder {folder} belongs to another user"
    return None


def _steps(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each folder on the way to ``path``, and the entry that is looked up there.

    Links are followed one by one, so that the folders of links come as well.
    """
    parts, at, links = [*reversed(path.absolute().parts[1:])], Path("/"), 0
    while parts:
        part = parts.pop()
        if part == "..":
            at = at.parent
            continue
        entry = at / part
        yield at, entry
        if not entry.is_symlink():
            at = entry
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(f"there are too many links on the way to {path}")
        target = entry.readlink()
        at = Path("/") if target.is_absolute() else at
        parts += [part for part in reversed(target.parts) if part != "/"]
