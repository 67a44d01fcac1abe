"""Locks between processes: files that stay locked as long as their holders live (flock).

A lock is an open file, for a ``with``: C code closes it, which no interrupt cuts short. A fork
would share the file, so the child closes all of its lock files.

Every program that can open such a file can lock the file for ever. Therefore a wait has a time
limit, and a warning names the lock's file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import threading
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final
from weakref import ReferenceType, ref

from agentguard.errors import StorageError
from agentguard.storage import fork

_LOGGER = logging.getLogger("agentguard")

PATIENCE: Final = 30.0
"""Seconds after which a wait is given up: this package holds a lock for a few seconds at most."""

WARN_AFTER: Final = 2.0
"""Seconds after which a warning names the lock that is waited for."""

_LONGEST_PAUSE: Final = 0.02
_OPENED: Final[dict[int, tuple[ReferenceType[FileIO], os.stat_result]]] = {}
"""The lock files by their descriptors, the closed ones too; and which files they are."""

_OPENING = threading.RLock()  # no fork comes between an opening and its note in _OPENED


def acquire(path: Path) -> FileIO:
    """Lock a file, made if need be, until it is closed; wait while another process has it.

    Logs a warning after ``WARN_AFTER``, and gives up after ``PATIENCE``. Raises ``StorageError``
    (``storage.readonly``, ``storage.locked``).
    """
    file = _open(path)
    try:
        if not _try(file):
            _wait(file, path)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise _unlockable(path, error) from error
        raise
    return file


def try_acquire(path: Path, *, shared: bool = False) -> FileIO | None:
    """Lock a file as ``acquire`` does; return None at once where another process has the lock.

    A ``shared`` lock excludes only the others.
    """
    file = _open(path)
    try:
        if _try(file, shared=shared):
            return file
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise _unlockable(path, error) from error
        raise
    file.close()
    return None


def _open(path: Path) -> FileIO:
    # no link is followed: a lock's file must be the state's own
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with _OPENING:
            number = os.open(path, flags, 0o600)
            file = FileIO(number, "r+")
            _OPENED[number] = ref(file), os.fstat(number)
    except OSError as error:
        message = f"the lock {path} can't be opened ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    return file


def _unlockable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be locked ({error.strerror}): keep the state on a local disk"
    return StorageError(message, code="storage.locked")


def _try(file: FileIO, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(file: FileIO, path: Path) -> None:
    """Lock the file as soon as no other process does; flock itself has no time limit."""
    start, pause, is_warned = time.monotonic(), 0.0005, False
    who = f"a process that 'fuser {shlex.quote(str(path))}' names"
    while not _try(file):
        waited = time.monotonic() - start
        if waited > PATIENCE:
            message = f"{path} was locked for {waited:.0f} s by {who}: end that process, try again"
            raise StorageError(message, code="storage.locked")
        if waited > WARN_AFTER and not is_warned:
            _LOGGER.warning("waiting for %s, locked by %s", path, who)
            is_warned = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _close_all() -> None:
    try:
        for number, (opened, status) in _OPENED.items():
            with suppress(OSError):
                if not os.path.samestat(os.fstat(number), status):
                    continue  # the number is another file's by now
                file = opened()
                if file is None or file.closed:  # the parent was amid its close
                    os.close(number)
                else:
                    file.close()
    finally:
        _OPENED.clear()
        _OPENING.release()


fork.at_fork(
    fork.Stage.LOCKS, before=_OPENING.acquire, in_parent=_OPENING.release, in_child=_close_all
)
