"""Locks between processes: a file that stays locked as long as its holder lives (flock).

A lock belongs to an open file, which a fork would share: the child lets go of all of them.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Literal, overload

from agentguard.errors import StorageError
from agentguard.storage import fork

_HELD: set[int] = set()
_OPENING = threading.Lock()  # no fork comes between opening or closing a file and knowing of it


@overload
def acquire(path: Path, *, wait: Literal[True]) -> int: ...


@overload
def acquire(path: Path, *, wait: Literal[False]) -> int | None: ...


def acquire(path: Path, *, wait: bool) -> int | None:
    """Lock a file, which is made if need be; return its descriptor.

    None where somebody else holds it and ``wait`` is false. Raises ``StorageError``
    (``storage.readonly``).
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
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        release(lock)
        return None
    except OSError as error:
        release(lock)
        message = f"{path} can't be locked ({error.strerror}): keep the state on a local disk"
        raise StorageError(message, code="storage.locked") from error
    except BaseException:
        release(lock)
        raise
    return lock


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
