"""Locks between processes: files that stay locked as long as their holders live (flock).

A lock belongs to an open file, which a fork would share: the child closes all of its lock files.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import fork

_LOGGER = logging.getLogger("agentguard")

PATIENCE: Final = 30.0
"""Seconds after which a wait is given up: this package holds a lock for a few seconds at most."""

WARN_AFTER: Final = 2.0
"""Seconds after which a warning names the lock that is waited for."""

_LONGEST_PAUSE: Final = 0.02
_HELD: set[int] = set()
_OPENING = threading.Lock()  # no fork comes between a change of a file and its note in _HELD


def acquire(path: Path) -> int:
    """Lock a file, made if need be, and return its descriptor; wait while another process has it.

    Logs a warning after ``WARN_AFTER``, and gives up after ``PATIENCE``. Raises ``StorageError``
    (``storage.readonly``, ``storage.locked``).
    """
    lock = _open(path)
    try:
        if not _try(lock):
            _wait(lock, path)
    except BaseException as error:
        release(lock)
        if isinstance(error, OSError):
            raise _unlockable(path, error) from error
        raise
    return lock


def try_acquire(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file as ``acquire`` does; return None at once where another process has the lock.

    A ``shared`` lock excludes only the others.
    """
    lock, is_held = _open(path), False
    try:
        is_held = _try(lock, shared=shared)
    except OSError as error:
        raise _unlockable(path, error) from error
    finally:
        if not is_held:
            release(lock)
    return lock if is_held else None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on a file inside a ``with`` block; waits and raises as ``acquire`` does."""
    lock = acquire(path)
    try:
        yield
    finally:
        release(lock)


def _open(path: Path) -> int:
    try:
        with _OPENING:
            # no link is followed: a lock's file must be the state's own
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(path, flags, 0o600)
            _HELD.add(lock)
    except OSError as error:
        message = f"the lock {path} can't be opened ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    return lock


def _unlockable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be locked ({error.strerror}): keep the state on a local disk"
    return StorageError(message, code="storage.locked")


def _try(lock: int, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(lock: int, path: Path) -> None:
    """Lock the file as soon as no other process does; flock itself has no time limit."""
    start, pause, is_warned = time.monotonic(), 0.0005, False
    who = f"a process that 'fuser {shlex.quote(str(path))}' names"
    while not _try(lock):
        waited = time.monotonic() - start
        if waited > PATIENCE:
            message = f"{path} was locked for {waited:.0f} s by {who}: end that process, try again"
            raise StorageError(message, code="storage.locked")
        if waited > WARN_AFTER and not is_warned:
            _LOGGER.warning("waiting for %s, locked by %s", path, who)
            is_warned = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def release(lock: int) -> None:
    """Release a lock by its descriptor."""
    with _OPENING:
        _HELD.discard(lock)
        os.close(lock)


def _release_all() -> None:
    try:
        for lock in _HELD:
            os.close(lock)
        _HELD.clear()
    finally:
        _OPENING.release()


fork.at_fork(
    fork.Stage.LOCKS, before=_OPENING.acquire, in_parent=_OPENING.release, in_child=_release_all
)
