"""``LogProbe``: whether a process can write its log, for the probes of a server.

The newest attempt to write tells. After a while without an attempt the probe has the log's file
written as it is, so no probe adds an entry.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Final

from agentguard.errors import StorageError
from agentguard.store.log import StoreLog

_LOGGER: Final = logging.getLogger("agentguard")

_TELLS_FOR: Final = 10.0
"""Seconds for which an attempt that succeeded tells that the log can be written."""

_FAILS_FOR: Final = 1.0
"""Seconds for which an attempt that failed tells that the log can't be written."""


class LogProbe:
    """Probes ``log``. Threads may share it."""

    def __init__(self, log: StoreLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._was_writable = True

    def failure(self) -> StorageError | None:
        """Return why the log can't be written, None where it can.

        A change is logged. Waits as long as the disk takes.
        """
        with self._lock:  # whoever waits here takes the answer of the one attempt
            newest = self._log.newest_attempt
            tells_for = _TELLS_FOR if newest.failure is None else _FAILS_FOR
            if time.monotonic() - newest.at > tells_for:
                with suppress(StorageError):  # of which the new attempt tells
                    self._log.probe()
            failure = self._log.newest_attempt.failure
            if (failure is None) is not self._was_writable:
                self._was_writable = failure is None
                _log_change(failure)
            return failure


def _log_change(failure: StorageError | None) -> None:
    if failure is None:
        _LOGGER.warning("the log can be written again")
    else:
        _LOGGER.warning("no call can run: %s [%s]", failure, failure.code)
