"""Locks between processes: a file that stays locked as long as its holder lives (flock).

A lock belongs to an open file, which a fork would share: the child lets go of all of them.

Whoever can open such a file can lock it and never let go. So a wait has a time limit, and a warning
names the lock that is waited for.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import threading
import time
from pathlib import Path
from typing import Final, Literal, overload

from agentguard.errors import StorageError
from agentguard.storage import fork

_LOGGER = logging.getLogger("agentguard")

PATIENCE: Final = 30.0
"""Seconds after which a lock is given up: whoever holds one lawfully needs a few of them."""

TOLD_AFTER: Final = 2.0
"""Seconds after which a warning says what is waited for."""

_LONGEST_PAUSE: Final = 0.02
_HELD: set[int] = set()
_OPENING = threading.Lock()  # no fork comes between opening or closing a file and knowing of it


@overload
def acquire(path: Path, *, wait: Literal[True]) -> int: ...


@overload
def acquire(path: Path, *, wait: Literal[False]) -> int | None: ...


def acquire(path: Path, *, wait: bool) -> int | None:
    """Lock a file, which is made if need be; return its descriptor.

    Where somebody else holds it: None if ``wait`` is false; else it waits, logs a warning after two
    seconds, and gives up after ``PATIENCE``. Raises ``StorageError`` (``storage.readonly``,
    ``storage.locked``).
    """
    try:
        with _OPENING:
            # no link is followed: what counts calls is written to, and must be the state's own
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(path, flags, 0o600)
            _HELD.add(lock)
    except OSError as error:
        message = f"the lock {path} can't be opened ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    try:
        if _try(lock):
            return lock
        if wait:
            _wait(lock, path)
            return lock
    except OSError as error:
        release(lock)
        message = f"{path} can't be locked ({error.strerror}): keep the state on a local disk"
        raise StorageError(message, code="storage.locked") from error
    except BaseException:
        release(lock)
        raise
    release(lock)
    return None


def _try(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(lock: int, path: Path) -> None:
    """Lock the file once nobody else does; flock itself has no time limit."""
    begun, pause, is_told = time.monotonic(), 0.0005, False
    who = f"a process that 'fuser {shlex.quote(str(path))}' names"
    while not _try(lock):
        waited = time.monotonic() - begun
        if waited > PATIENCE:
            message = f"{path} was locked for {waited:.0f} s by {who}: end that process, try again"
            raise StorageError(message, code="storage.locked")
        if waited > TOLD_AFTER and not is_told:
            _LOGGER.warning("waiting for %s, locked by %s", path, who)
            is_told = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def release(lock: int) -> None:
    """Let go of a lock that ``acquire`` has returned; not inside SQLite (``fork.py``)."""
    with _OPENING:
        _HELD.discard(lock)
        os.close(lock)


def _let_go() -> None:
    try:
        for lock in _HELD:
            os.close(lock)
        _HELD.clear()
    finally:
        _OPENING.release()


fork.at_fork(
    fork.Stage.LOCKS, before=_OPENING.acquire, in_parent=_OPENING.release, in_child=_let_go
)
