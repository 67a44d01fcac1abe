"""Locks that know which thread holds them, for code that interrupts a thread within its own work.

A signal handler, an object's finalizer (``__del__``) or a trace function may call the guard while
its own thread works in the guard. There it must not wait: its thread goes on only once it is done.
Such a call is refused (``storage.busy``). ``SQLITE_LOCK`` tells who is inside SQLite, for the whole
process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import fork

SQLITE_LOCK: Final = threading.RLock()
"""Held by a thread that is inside SQLite. A fork waits for this lock: the child would wait for ever
for SQLite's own locks, where a thread held them that the child does not have."""

_OWNED: Final = threading.Condition(SQLITE_LOCK)


def holds_sqlite_lock() -> bool:
    """Whether this thread holds ``SQLITE_LOCK``, and so was interrupted inside SQLite."""
    try:
        _OWNED.notify(0)  # wakes nobody; raises where this thread does not hold the lock
    except RuntimeError:
        return False
    return True


def busy(activity: str) -> StorageError:
    """Return the error (``storage.busy``) for a call that interrupts its own thread."""
    message = f"this thread was interrupted while {activity}: try again when that is done"
    return StorageError(message, code="storage.busy")


class OwnedLock:
    """A lock that one thread holds at a time, and no thread twice; ``activity`` says what for."""

    def __init__(self, activity: str) -> None:
        self._activity = activity
        self._lock = threading.RLock()
        self._holder = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; raises ``StorageError`` (``storage.busy``) where this thread holds it."""
        with self._lock:
            self.require_free()
            try:
                self._holder = threading.get_ident()
                yield
            finally:
                self._holder = 0

    @property
    def is_held(self) -> bool:
        """Whether a thread holds the lock."""
        return self._holder != 0

    def require_free(self) -> None:
        """Raise ``StorageError`` (``storage.busy``) where this thread holds the lock."""
        if self._holder == threading.get_ident():
            raise busy(self._activity)

    def acquire(self) -> None:
        """Keep other threads from the lock while this process forks."""
        self._lock.acquire()

    def release(self) -> None:
        """Undo ``acquire``."""
        self._lock.release()


fork.at_fork(
    fork.Stage.SQLITE,
    before=SQLITE_LOCK.acquire,
    in_parent=SQLITE_LOCK.release,
    in_child=SQLITE_LOCK.release,
)
