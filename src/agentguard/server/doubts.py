"""``EarlierDoubts``: the calls in doubt that a server finds in its log at the start.

Such calls were running when an earlier server, or a guard before the server, was killed. The log is
searched in a thread of its own, so that the server serves at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Final

from agentguard.audit import doubts
from agentguard.audit.log import LogReader
from agentguard.errors import AgentguardError

_LOGGER = logging.getLogger("agentguard")

MOST: Final = 1000
"""The most calls that are counted: so many, or more."""

_SETTLED_AFTER: Final = 10.0
"""Seconds after which ``count`` looks again which of the calls a person has settled."""


class EarlierDoubts:
    """Counts the calls in doubt from before now. ``read`` opens a reader of the log.

    The methods may be called from any thread. Raises ``StorageError``
    and ``DecodeError`` for a log that can't be read.
    """

    def __init__(self, read: Callable[[], LogReader]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._indices: list[int] | None = None
        self._looked_at = 0.0
        with closing(read()) as reader:
            size = reader.size()
        search = threading.Thread(
            target=self._search, args=(size,), name="agentguard-doubts", daemon=True
        )
        search.start()

    def _search(self, size: int) -> None:
        try:
            with closing(self._read()) as reader:
                indices = list(islice(doubts.doubts(reader, size), MOST))
        except AgentguardError:
            _LOGGER.warning(
                "the calls in doubt from before the start can't be counted", exc_info=True
            )
            return
        with self._lock:
            self._indices, self._looked_at = indices, time.monotonic()
        if indices:
            number = f"{MOST} or more" if len(indices) == MOST else len(indices)
            message = (
                "calls in doubt from before the start: %s; see agentguard audit list --in-doubt"
            )
            _LOGGER.warning(message, number)

    def count(self) -> int | None:
        """Return how many of these calls are still in doubt, ``MOST`` for so many or more.

        None until they are counted, and where the log can't be searched.
        """
        with self._lock:
            now = time.monotonic()
            if self._indices and now - self._looked_at > _SETTLED_AFTER:
                self._indices, self._looked_at = self._unsettled(self._indices), now
            return None if self._indices is None else len(self._indices)

    def _unsettled(self, indices: list[int]) -> list[int]:
        try:
            with closing(self._read()) as reader:
                return [index for index in indices if doubts.is_in_doubt(reader, index)]
        except AgentguardError:
            _LOGGER.warning("the calls in doubt can't be looked at again", exc_info=True)
            return indices
