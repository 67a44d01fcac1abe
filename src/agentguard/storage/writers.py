"""Finds out whether a user who can write a state can also change the state's anchor.

A user who can change both can roll both back; the anchor then agrees with the state, and proves
nothing. The owners and modes of a file and of each folder above say who can change the file: the
owner in every case (``chmod``), the group and all others if the mode lets them write. In a folder
with the sticky bit only the owner of a file or a link can replace the file or the link. A file
whose access list (POSIX ACL) lets somebody write counts as writable for everybody. Root can change
everything and is ignored, unless root owns the state. Files whose status can't be read count as
shared.
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

_ROOT = 0
_NO_LINK = frozenset({errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP})


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
        """Return the writers of ``files`` that are in the folders ``above``."""
        own, folders = list(files), list(above)
        shared = [*own, *(rights for rights in folders if not rights.mode & stat.S_ISVTX)]
        return cls(
            frozenset(rights.owner for rights in (*own, *folders)),
            frozenset(rights.group for rights in shared if rights.mode & stat.S_IWGRP),
            any(rights.mode & stat.S_IWOTH for rights in shared),
        )

    def overlap(self, other: Writers, groups_of: Callable[[int], Iterable[int]]) -> bool:
        """Return whether a user but root is in both; ``groups_of`` returns a user's groups."""
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
    """Return whether no user who can write ``state`` can change the log's folder ``anchors``."""
    try:
        state_files = [state, *state.glob("*.sqlite"), *state.glob("*.json")]
        own = [_rights(path) for path in state_files]
        if any(rights.owner == _ROOT for rights in own):
            return False
        theirs = [_rights(path) for path in (anchors, *anchors.iterdir())]
        return not Writers.of(own, _above(state)).overlap(
            Writers.of(theirs, _above(anchors)), _groups_of
        )
    except OSError:
        return False


def way(path: Path) -> list[Path]:
    """Return each path that leads to a file: the file, the folders above, and links' targets.

    A user who can write the folder of any of these paths can replace the file. Raises ``OSError``.
    """
    # as texts, because Path takes five times as long, and a file of keys is read for each token
    names: dict[str, None] = {}
    ends = [os.fspath(path.absolute())]
    while ends:
        name = ends.pop()
        while name not in names:
            names[name] = None
            above = os.path.dirname(name)  # noqa: PTH120
            target = _target(name)
            if target is not None:
                ends.append(os.path.join(above, target))  # noqa: PTH118
            name = above
    return [Path(name) for name in names]


def _target(name: str) -> str | None:
    """Return where a symbolic link leads, None for what is no link or is not there."""
    try:
        return os.readlink(name)  # noqa: PTH115
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return None


def _above(path: Path) -> list[Rights]:
    """Return the rights of the folders above a file, and of the links that lead to the file."""
    names = way(path)
    above = {folder: _rights(folder) for folder in dict.fromkeys(name.parent for name in names)}
    links = [
        name.lstat()
        for name in names
        if name.is_symlink() and above[name.parent].mode & stat.S_ISVTX
    ]
    # a link's own mode has no effect
    return [*above.values(), *(Rights(link.st_uid, link.st_gid, 0) for link in links)]


def _rights(path: Path) -> Rights:
    status = path.stat()
    mode = status.st_mode
    if mode & stat.S_IWGRP and has_access_list(path):
        mode |= stat.S_IWOTH
    return Rights(status.st_uid, status.st_gid, mode)


def has_access_list(path: Path) -> bool:
    """Return whether a file has an access list (POSIX ACL), for users that the mode does not name.

    The group's bits of the mode then limit the rights of all users on the list. Raises ``OSError``.
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
        account = pwd.getpwuid(user)
    except KeyError:  # a number without an account has no groups
        return []
    return os.getgrouplist(account.pw_name, account.pw_gid)
