"""The logs that are open in this process: flushed in the background, and closed at exit.

What a flush and a close do stands in ``store.py``.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import Final, Protocol

from agentguard.errors import StorageError

FLUSH_AFTER: Final = 0.05
"""Seconds within which an enqueued record becomes durable."""

LOGGER: Final = logging.getLogger("agentguard")
NOT_CLOSED: Final = "a log could not be closed: its newest outcomes may be lost"


class OpenLog(Protocol):
    """A log of this process, as a ``Store`` is one."""

    @property
    def closed(self) -> bool:
        """Whether the log is closed."""

    def flush(self) -> None:
        """Make all enqueued records durable; raises ``StorageError``."""

    def close(self) -> None:
        """Flush and release the log; raises ``StorageError``."""


# A durable log lives until it is closed: dropping a guard must not drop what it still has to write.
_UNCLOSED: Final[set[OpenLog]] = set()
_EXIT_HOOKS: Final[set[int]] = set()
"""The processes, by number, in which multiprocessing closes the logs at its end."""


def register(log: OpenLog) -> None:
    """Have a log closed when the process ends."""
    _UNCLOSED.add(log)
    _close_at_exit()


def unregister(log: OpenLog) -> None:
    """Leave a log alone when the process ends: it is closed."""
    _UNCLOSED.discard(log)


class Wake:
    """Wakes a flusher. ``set`` waits for nobody.

    The lock of a ``threading.Event`` would be waited for in vain by a signal handler or an object's
    finalizer that interrupts ``set`` and calls the log again.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether the next ``wait`` returns at once."""
        return not self._gate.locked()

    def set(self) -> None:
        """Let one ``wait`` return."""
        with suppress(RuntimeError):  # it is set already
            self._gate.release()

    def wait(self) -> None:
        """Wait until ``set`` is called, or was called since the last ``wait``."""
        self._gate.acquire()


def start(log: OpenLog, wake: Wake) -> threading.Thread:
    """Start the thread that flushes a log in the background, each time that ``wake`` is set."""
    flusher = threading.Thread(
        target=_flush_forever,
        args=(weakref.ref(log), wake),
        name="agentguard-flush",
        daemon=True,
    )
    flusher.start()
    return flusher


def _flush_forever(reference: weakref.ref[OpenLog], wake: Wake) -> None:
    """Flush what is enqueued and not taken along by an append in time.

    ``wake`` is set before a record is enqueued, and when the log is closed or gone.
    """
    pause = threading.Event()  # never set: a way to sleep
    while True:
        wake.wait()
        log = reference()
        if log is None or log.closed:
            return
        pause.wait(FLUSH_AFTER * 0.8)
        try:
            log.flush()
        except Exception as error:  # a flusher that ended would leave outcomes unwritten
            if not isinstance(error, StorageError):  # of which the next append tells
                LOGGER.exception("a log could not be flushed: it is flushed again in a second")
            pause.wait(1.0)  # the records stay pending
            wake.set()
        del log


def _close_all() -> None:
    for log in list(_UNCLOSED):
        try:
            log.close()
        except Exception:  # the others must be flushed all the same
            LOGGER.exception(NOT_CLOSED)


def _close_at_exit() -> None:
    """Have the logs closed at the end of a multiprocessing child, too: it runs no ``atexit``."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and os.getpid() not in _EXIT_HOOKS:
        _EXIT_HOOKS.add(os.getpid())
        util.Finalize(None, _close_all, exitpriority=0)


atexit.register(_close_all)
