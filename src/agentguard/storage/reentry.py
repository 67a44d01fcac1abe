"""Detects that a signal handler has interrupted its own thread where the handler must not wait.

Such a handler would wait for a thread that goes on only after the handler. ``SQLITE_LOCK`` tells
who is inside SQLite, for the whole process. A ``ReentryGuard`` tells who is inside one object.
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


def interrupted(*, is_committing: bool = False) -> StorageError:
    """Return the error for a call amid a commit of the same thread, or amid SQLite's work."""
    message = "this thread was interrupted while the log is written: try again when that is done"
    if is_committing:
        message = f"whether the entry is in the log is not known yet: {message}"
    return StorageError(message, code="storage.unknown" if is_committing else "storage.busy")


class ReentryGuard(threading.local):
    """Refuses a thread that enters a second time, as from a signal handler."""

    is_entered = False

    @contextmanager
    def enter(self, activity: str) -> Iterator[None]:
        """Enter once; raises ``StorageError`` (``storage.busy``) where this thread is inside."""
        if self.is_entered:
            message = f"this thread is {activity}: make this call when that is done"
            raise StorageError(message, code="storage.busy")
        self.is_entered = True
        try:
            yield
        finally:
            self.is_entered = False


fork.at_fork(
    fork.Stage.SQLITE,
    before=SQLITE_LOCK.acquire,
    in_parent=SQLITE_LOCK.release,
    in_child=SQLITE_LOCK.release,
)
