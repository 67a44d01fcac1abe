"""Refuses a file of a configuration that other users may read or write.

A user who can write a policy's file, or replace the file, decides what the policy says. So this
module checks every folder on the path to the file, too. ``domain/keystore.py`` checks the rights to
a state.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from functools import partial
from pathlib import Path

from agentguard.errors import ConfigError
from agentguard.storage import files, writers


def read(path: Path) -> bytes:
    """Read a file that no other user can have written.

    Raises ``ConfigError`` (``config.exposed``), and ``OSError`` if the path is not a regular file,
    or if the file is too long or can't be read.
    """
    refuse_if_replaceable(path)
    return files.read(path, require=partial(_require_own, path))


def read_private(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes that others can neither read nor have written.

    A group may read the file, because containers get their secrets in such files. Raises
    ``ConfigError`` (``config.exposed``) and ``OSError`` as ``read`` does.
    """
    refuse_if_replaceable(path)
    return files.read(path, limit=limit, require=partial(_require_private, path))


def refuse_if_writable_by_others(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if others can write ``path``, or replace it.

    Raises ``OSError`` if the rights can't be read, or if the path is neither a regular file nor a
    folder.
    """
    if not path.is_dir():
        files.require_regular(path)
    _require_own(path, path.stat())
    refuse_if_replaceable(path)


def refuse_if_readable_by_all(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if all can read ``path``, or others write it.

    A group may read the file, because containers get their secrets in such files. Raises
    ``OSError`` if the rights can't be read.
    """
    refuse_if_writable_by_others(path)
    _refuse_if_readable(path, path.stat())


def refuse_if_replaceable(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if others can replace ``path``.

    Checks every folder above the path, and every folder above a symbolic link on the way. A
    writable folder is accepted on a read-only file system, and if its group has no member but this
    user. In a sticky folder (such as ``/tmp``) others can replace only their own files and links.
    Raises ``OSError``.
    """
    trusted_users = (os.getuid(), 0)
    for name in writers.way(path):
        folder = name.parent
        status = folder.stat()
        shared = _is_shared(folder, status)
        if status.st_uid not in trusted_users and not _is_read_only(folder):
            raise _of_another(folder, status, f"can replace {path}")
        if shared and status.st_mode & stat.S_ISVTX:
            shared = name.lstat().st_uid not in trusted_users
        if shared and not _is_read_only(folder):
            message = (
                f"others can write the folder {folder}, and so replace {path}: run chmod go-w on "
                f"the folder, and chown on the folder and {name} if another user owns them; or "
                f"move {path} to another folder"
            )
            raise ConfigError(message, code="config.exposed")


def _require_private(path: Path, status: os.stat_result) -> None:
    _require_own(path, status)
    _refuse_if_readable(path, status)


def _refuse_if_readable(path: Path, status: os.stat_result) -> None:
    if status.st_mode & stat.S_IROTH:
        message = f"everybody can read {path}: run chmod o-rwx on it"
        raise ConfigError(message, code="config.exposed")


def _require_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.getuid(), 0):
        raise _of_another(path, status, "can write it")
    if _is_shared(path, status):
        message = f"others can write {path}: run chmod go-w on it"
        raise ConfigError(message, code="config.exposed")


def _of_another(path: Path, status: os.stat_result, does: str) -> ConfigError:
    """Return the error for a file or a folder that is neither this user's nor root's."""
    message = (
        f"{path} belongs to the user {_user(status.st_uid)}, who {does}, and this program runs as "
        f"{_user(os.getuid())}: run the program as the owner, or name a file that this user or "
        "root owns, with its folders (chown)"
    )
    return ConfigError(message, code="config.exposed")


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _is_shared(path: Path, status: os.stat_result) -> bool:
    """Whether the mode or the access list of a file lets users other than the owner write it."""
    mode = status.st_mode
    if mode & stat.S_IWOTH:
        return True
    by_group = mode & stat.S_IWGRP and (
        not _is_own_group(status.st_gid) or writers.has_access_list(path)
    )
    return bool(by_group)


def _is_own_group(group: int) -> bool:
    """Whether the group is the user's own group, which on many systems has no other member."""
    try:
        name, entry = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
