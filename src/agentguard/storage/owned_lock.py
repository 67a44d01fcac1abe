"""Locks that know which thread holds them, for code that interrupts a thread within its own work.

A signal handler, an object's finalizer (``__del__``) or a trace function may call the guard while
its own thread works in the guard. There it must not wait: its thread goes on only once it is done.
Such a call is refused (``storage.busy``).
"""

from __future__ import annotations

import threading

from agentguard.errors import StorageError


def busy(activity: str) -> StorageError:
    """Return the error (``storage.busy``) for a call that interrupts its own thread."""
    message = f"this thread was interrupted while {activity}: try again when that is done"
    return StorageError(message, code="storage.busy")


class OwnedLock:
    """A lock that one thread holds at a time, and no thread twice; ``activity`` says what for.

    It is an ``RLock``: an interrupt comes before or after its ``with``, where one amid the Python
    code of an ``__enter__`` would leave it held.
    """

    def __init__(self, activity: str) -> None:
        self._activity = activity
        self._lock = threading.RLock()

    def held(self) -> threading.RLock:
        """Return the lock, for a ``with``; raises as ``require_free`` does."""
        self.require_free()
        return self._lock

    @property
    def is_own(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001  as Condition

    def require_free(self) -> None:
        """Raise ``StorageError`` (``storage.busy``) where this thread holds the lock."""
        if self.is_own:
            raise busy(self._activity)

    def acquire(self) -> None:
        """Keep other threads from the lock while this process forks."""
        self._lock.acquire()

    def release(self) -> None:
        """Undo ``acquire``."""
        self._lock.release()
