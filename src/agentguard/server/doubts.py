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
from agentguard.audit.doubts import Place
from agentguard.audit.log import LogReader
from agentguard.errors import AgentguardError

_LOGGER = logging.getLogger("agentguard")

MOST: Final = 1000
"""The most calls that are counted: so many, or more."""

_SETTLED_AFTER: Final = 10.0
"""Seconds after which ``count`` looks again which of the calls a person has settled."""


class EarlierDoubts:
    """Counts the calls in doubt from before now. ``read`` opens a reader of the log.

    The methods may be called from any thread. Raises ``StorageError``.
    """

    def __init__(self, read: Callable[[], LogReader]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._places: list[Place] | None = None
        self._looked_at = 0.0
        with closing(read()) as reader:
            before = doubts.ends(reader)
        search = threading.Thread(
            target=self._search, args=(before,), name="agentguard-doubts", daemon=True
        )
        search.start()

    def _search(self, before: dict[int, int]) -> None:
        try:
            with closing(self._read()) as reader:
                places = list(islice(doubts.doubts(reader, before), MOST))
        except AgentguardError:
            _LOGGER.warning(
                "the calls in doubt from before the start can't be counted", exc_info=True
            )
            return
        with self._lock:
            self._places, self._looked_at = places, time.monotonic()
        if places:
            number = f"{MOST} or more" if len(places) == MOST else len(places)
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
            if self._places and now - self._looked_at > _SETTLED_AFTER:
                self._places, self._looked_at = self._unsettled(self._places), now
            return None if self._places is None else len(self._places)

    def _unsettled(self, places: list[Place]) -> list[Place]:
        try:
            with closing(self._read()) as reader:
                return [place for place in places if doubts.is_in_doubt(reader, place)]
        except AgentguardError:
            _LOGGER.warning("the calls in doubt can't be looked at again", exc_info=True)
            return places
