"""Refuses a file that a configuration names and that other users may read or write.

A user who can write a policy's file, or put another file in its place, decides what the policy
says. So every folder on the way to the file is looked at, too. ``domain/keystore.py`` looks at the
rights to a state.
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

    Raises ``ConfigError`` (``config.exposed``), and ``OSError`` for what is no regular file, is too
    long or can't be read.
    """
    refuse_if_replaceable(path)
    return files.read(path, require=partial(_require_own, path))


def refuse_if_writable_by_others(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if others can write ``path``, or replace it.

    Raises ``OSError`` where it can't be looked at, and is neither a regular file nor a folder.
    """
    if not path.is_dir():
        files.require_regular(path)
    _require_own(path, path.stat())
    refuse_if_replaceable(path)


def refuse_if_readable_by_all(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if all can read ``path``, or others write it.

    A group may read it: that is how secrets come into a container. Raises ``OSError`` where it
    can't be looked at.
    """
    refuse_if_writable_by_others(path)
    if path.stat().st_mode & stat.S_IROTH:
        message = f"everybody can read {path}: run chmod o-rwx on it"
        raise ConfigError(message, code="config.exposed")


def refuse_if_replaceable(path: Path) -> None:
    """Raise ``ConfigError`` (``config.exposed``) if others can put another file in its place.

    Every folder above it is looked at, and every folder above a symbolic link on the way. A folder
    counts as its owner's alone on a file system that nobody can write, where its group has no
    member but this user, or where it is sticky (as ``/tmp`` is): there others replace what they
    own, such as a link. Raises ``OSError``.
    """
    own = (os.getuid(), 0)
    for name in writers.way(path):
        folder, status = name.parent, name.parent.stat()
        shared = _is_shared(folder, status)
        if shared and status.st_mode & stat.S_ISVTX:
            shared = name.lstat().st_uid not in own
        if (shared or status.st_uid not in own) and not _is_read_only(folder):
            message = (
                f"others can write the folder {folder}, and so replace {path}: run chmod go-w on "
                f"the folder, see that you own it and {name}, or keep {path} elsewhere"
            )
            raise ConfigError(message, code="config.exposed")


def _require_own(path: Path, status: os.stat_result) -> None:
    if _is_shared(path, status) or status.st_uid not in (os.getuid(), 0):
        message = f"others can write {path}: run chmod go-w on it, and see that you own it"
        raise ConfigError(message, code="config.exposed")


def _is_shared(path: Path, status: os.stat_result) -> bool:
    """Whether the mode of a file, or its access list, lets other users than the owner write it."""
    mode = status.st_mode
    by_group = mode & stat.S_IWGRP and (
        not _is_own_group(status.st_gid) or writers.has_access_list(path)
    )
    return bool(mode & stat.S_IWOTH or by_group)


def _is_own_group(group: int) -> bool:
    """Whether the group is the user's own, in which many systems put nobody else."""
    try:
        name, entry = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
