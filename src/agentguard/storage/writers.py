"""Finds out who can change files: whether a user who writes a state can change its anchor, too.

A user who can change both can roll both back; the anchor then agrees with the state, and proves
nothing. Who can change a file is read off owners and modes, of the file and of each folder above:
the owner always (``chmod``), and the group or everybody where they have the right to write. In a
folder with the sticky bit only owners replace what is there, such as a link of theirs. A file with
an access list (POSIX ACL) that lets somebody write counts as everybody's. Root can
change everything, and is left out, unless the state is root's own. What can't be looked at counts
as shared.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from agentguard.storage import sqlite

_ROOT = 0


class Rights(NamedTuple):
    """The owner, the group and the mode of a file or a folder."""

    owner: int
    group: int
    mode: int


class Writers(NamedTuple):
    """Who can change files: users and groups by number, or ``anyone``."""

    users: frozenset[int]
    groups: frozenset[int]
    anyone: bool

    @classmethod
    def of(cls, files: Iterable[Rights], above: Iterable[Rights]) -> Writers:
        """Read them off ``files`` and the folders ``above`` them."""
        own, folders = list(files), list(above)
        open_ = [*own, *(one for one in folders if not one.mode & stat.S_ISVTX)]
        return cls(
            frozenset(one.owner for one in (*own, *folders)),
            frozenset(one.group for one in open_ if one.mode & stat.S_IWGRP),
            any(one.mode & stat.S_IWOTH for one in open_),
        )

    def overlap(self, other: Writers, groups_of: Callable[[int], Iterable[int]]) -> bool:
        """Whether somebody but root is among both; ``groups_of`` tells a user's groups."""
        if self.anyone or other.anyone or self.groups & other.groups:
            return True
        if (self.users & other.users) - {_ROOT}:
            return True
        return any(
            those.groups & frozenset(groups_of(user))
            for these, those in ((self, other), (other, self))
            for user in these.users - {_ROOT}
            if those.groups
        )


def is_apart(state: Path, anchors: Path) -> bool:
    """Whether nobody who writes ``state`` can change the folder ``anchors`` of its log."""
    try:
        state_files = [state, *(state / sqlite.FOLDER).glob("*.sqlite"), *state.glob("*.json")]
        own = [_rights(path) for path in state_files]
        if any(one.owner == _ROOT for one in own):
            return False
        theirs = [_rights(path) for path in (anchors, *anchors.iterdir())]
        return not Writers.of(own, _above(state)).overlap(
            Writers.of(theirs, _above(anchors)), _groups_of
        )
    except OSError:
        return False


def way(path: Path) -> list[Path]:
    """Return each name on the way to a file: its own, the folders above it, and where links lead.

    The folder of each is one in which the file can be replaced, or the way to it. Raises
    ``OSError``.
    """
    names: dict[Path, None] = {}
    paths = [path.absolute()]
    while paths:
        written = paths.pop()
        for name in (written, *written.parents):
            if name not in names:
                names[name] = None
                if name.is_symlink():
                    paths.append(name.parent / name.readlink())
    return list(names)


def _above(path: Path) -> list[Rights]:
    """Return the rights of the folders above, and whose links on the way can be replaced."""
    names = way(path)
    above = {folder: _rights(folder) for folder in dict.fromkeys(name.parent for name in names)}
    links = [
        name.lstat()
        for name in names
        if name.is_symlink() and above[name.parent].mode & stat.S_ISVTX
    ]
    # a link's own mode gives nobody anything
    return [*above.values(), *(Rights(link.st_uid, link.st_gid, 0) for link in links)]


def _rights(path: Path) -> Rights:
    status = path.stat()
    mode = status.st_mode
    if mode & stat.S_IWGRP and has_access_list(path):
        mode |= stat.S_IWOTH
    return Rights(status.st_uid, status.st_gid, mode)


def has_access_list(path: Path) -> bool:
    """Whether a file lets users or groups in that its mode does not name (POSIX ACL).

    The group's bits of its mode are then the most that any of them has. Raises ``OSError``.
    """
    if sys.platform != "linux":
        return False
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
    return True


def _groups_of(user: int) -> list[int]:
    try:
        known = pwd.getpwuid(user)
    except KeyError:  # a number without a name has the groups of nobody
        return []
    return os.getgrouplist(known.pw_name, known.pw_gid)
