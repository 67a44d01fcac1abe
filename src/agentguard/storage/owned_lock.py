"""Locks that know which thread holds them, for code that interrupts a thread within its own work.

A signal handler, an object's finalizer (``__del__``) or a trace function may call the guard while
its own thread works in the guard. There it must not wait: its thread goes on only once it is done.
Such a call is refused (``storage.busy``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentguard.errors import StorageError


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
