"""One thread's turn to commit: the records that it took, and what became of each.

``log.py`` decides whose turn it is, and commits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from agentguard.audit.entry import LogPlace, Record
from agentguard.errors import StorageError
from agentguard.storage.backend import Head


class QueuedRecord:
    """A record on its way into the log; ``has_waiter`` where an ``append`` waits for it.

    It ends with its place in the log or with an error. ``is_settled`` tells the waiter so.
    """

    __slots__ = ("error", "has_waiter", "is_settled", "place", "record")

    def __init__(self, record: Record, *, has_waiter: bool) -> None:
        self.record = record
        self.has_waiter = has_waiter
        self.is_settled = False
        self.place: LogPlace | None = None
        self.error: StorageError | None = None


class CommitTurn:
    """The turn of one thread: its batch, and how the commit failed, if the commit did.

    ``own`` is the record of the thread's own ``append``.
    """

    __slots__ = ("batch", "failure", "own", "thread")

    def __init__(self, own: QueuedRecord | None) -> None:
        self.own = own
        self.thread = threading.get_ident()
        self.batch: list[QueuedRecord] = []
        self.failure: StorageError | None = None

    def settle(self) -> list[QueuedRecord]:
        """Settle the records of the batch; return those that are to be committed again.

        May be called again where an interrupt cut the first call short.
        """
        again: list[QueuedRecord] = []
        for queued in self.batch:
            if queued.place is not None:
                queued.is_settled = True
            elif queued is self.own or (queued.has_waiter and self.failure is not None):
                queued.is_settled = True
                queued.error = self.failure
            else:
                again.append(queued)
        return again


class WriteAttempt:
    """An attempt to write the log: ``at`` (seconds of the monotonic clock), and how it failed.

    ``failure`` is a copy of the error, whose traceback would keep the batch in memory.
    """

    __slots__ = ("at", "failure")

    def __init__(self, failure: StorageError | None = None) -> None:
        self.at = time.monotonic()
        self.failure = failure and StorageError(str(failure), code=failure.code)


class UncertainCommit(NamedTuple):
    """A commit of which nobody knows yet whether it is durable."""

    batch: Sequence[QueuedRecord]
    before: Head
    after: Head
