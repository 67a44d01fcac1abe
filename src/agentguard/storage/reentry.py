"""What a thread is inside of, where a signal handler must not wait for its own thread.

``INSIDE`` is SQLite's for the whole process, a ``Busy`` that of one object.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import fork

INSIDE: Final = threading.RLock()
"""Held by whoever is inside SQLite. A fork waits for it: SQLite's own locks, held by a thread that
the child does not have, would hold the child up for ever."""

_OWNED: Final = threading.Condition(INSIDE)


def is_inside() -> bool:
    """Whether this thread holds ``INSIDE``: it has been interrupted there."""
    try:
        _OWNED.notify(0)  # to nobody; it raises where the lock is not this thread's
    except RuntimeError:
        return False
    return True


class Busy(threading.local):
    """Whether this thread is inside: a signal handler would wait for its own thread for ever."""

    busy = False

    @contextmanager
    def once(self, what: str) -> Iterator[None]:
        """Be inside; raises ``StorageError`` (``storage.busy``) where this thread is already."""
        if self.busy:
            message = f"this thread is {what}: make this call when that is done"
            raise StorageError(message, code="storage.busy")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


fork.at_fork(
    fork.Stage.SQLITE, before=INSIDE.acquire, in_parent=INSIDE.release, in_child=INSIDE.release
)
