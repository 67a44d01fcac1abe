"""``Limits``: how many calls of one server a gateway makes in a minute, and at the same time.

The limits count calls before the policy decides, whatever it decides. They are in memory: another
gateway in front of the same server, and a gateway that is started anew, counts by itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from agentguard import Decision
from agentguard_mcp.gateway.settings import Settings

MINUTE: Final = 60.0


class Limits:
    """Counts the calls of one gateway; ``clock`` returns seconds that never go back.

    A call that a limit refuses does not count. The memory is a number for each call of the last
    minute, at most ``Settings.calls_per_minute``.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = settings.server
        self._per_minute = settings.calls_per_minute
        self._at_once = settings.calls_at_once
        self._clock = clock
        self._begun: deque[float] = deque()
        self._running = 0

    @contextmanager
    def counted(self) -> Iterator[Decision | None]:
        """Count a call from its request to its answer; give the refusal where a limit is reached.

        The codes are ``calls.rate`` and ``calls.simultaneous``.
        """
        refusal = self._refusal()
        if refusal is not None:
            yield refusal
            return
        if self._per_minute is not None:
            self._begun.append(self._clock())
        self._running += 1
        try:
            yield None
        finally:
            self._running -= 1

    def _refusal(self) -> Decision | None:
        if self._at_once is not None and self._running >= self._at_once:
            reason = (
                f"{self._running} calls of the MCP server {self._server} are under way, and no "
                "more may be at the same time"
            )
            return Decision.refusal(reason, code="calls.simultaneous")
        if self._per_minute is None:
            return None
        now = self._clock()
        while self._begun and now - self._begun[0] >= MINUTE:
            self._begun.popleft()
        if len(self._begun) < self._per_minute:
            return None
        reason = (
            f"the MCP server {self._server} gets {self._per_minute} calls a minute, and has got "
            "them"
        )
        return Decision.refusal(reason, code="calls.rate")
