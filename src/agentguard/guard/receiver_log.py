"""``ReceiverLog``: the tamper-evident log of a tool's server, in a state of the server's own.

``proof/receiver.py`` verifies the requests and says what goes on record. This module writes the
entries into the log of a guard, and bounds the entries of refused requests.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from agentguard.audit.entry import Record
from agentguard.audit.kinds.receiver import (
    KnownRequest,
    ReceivedEntry,
    ReceivedRequest,
    RefusedEntry,
)
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError, ConfigError, ProofError
from agentguard.flow.ports import Ports
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.storage import fork

MAX_REFUSALS: Final = 60
"""The most entries of refused requests in a minute by default, of each process."""

_MINUTE: Final = timedelta(minutes=1)


class ReceiverLog:
    """The log of a receiver: each accepted request stands there before the request is handled.

    ``guard`` is a guard of the receiver's own state (``agentguard init``, ``Guard.open``); a guard
    in memory is for tests. Several workers share a state. A
    refused request gets an entry only if its access token and its credential hold, and at most
    ``max_refusals`` in a minute do. All others are counted, and the next entry of this process has
    their number: requests of strangers do not fill the disk. The methods may be called from any
    thread. Raises ``ConfigError`` for a guard whose log is in a guard server.
    """

    def __init__(self, guard: Guard, *, max_refusals: int = MAX_REFUSALS) -> None:
        parts = guard._parts  # noqa: SLF001  a guard and its log are one unit
        if not isinstance(parts, Embedded):
            message = "the log of a receiver is in its own process: open its state with Guard.open"
            raise ConfigError(message)
        self._ports: Callable[[], Ports] = parts.runtime.current_ports
        self._recent: deque[datetime] = deque(maxlen=max(max_refusals, 0))
        self._unrecorded = 0
        self._lock = threading.Lock()
        fork.in_each_child(self._leave_to_parent)

    def received(self, request: ReceivedRequest) -> None:
        """Put an accepted request durably on record.

        Raises ``ProofError`` (``proof.unrecorded``).
        """
        self._append(
            lambda at, unrecorded: ReceivedEntry.new(request, unrecorded=unrecorded, at=at)
        )

    def refused(self, code: str, request: KnownRequest | None) -> None:
        """Put a refused request durably on record where there is room, and count it elsewhere.

        ``code`` is the reason code. None stands for a request of nobody who is known. Raises
        ``ProofError`` (``proof.unrecorded``).
        """
        if request is None or not self._has_room():
            self._count(1)
            return
        self._append(
            lambda at, unrecorded: RefusedEntry.new(code, request, unrecorded=unrecorded, at=at)
        )

    def _has_room(self) -> bool:
        """Whether another refused request may have an entry now; take the room."""
        now = self._now()
        with self._lock:
            recent = self._recent
            is_full = len(recent) == recent.maxlen
            if is_full and (not recent or abs(now - recent[0]) < _MINUTE):
                return False
            recent.append(now)
            return True

    def _now(self) -> datetime:
        try:
            return self._ports().clock()
        except Exception as error:
            self._count(1)
            raise _unrecorded(error) from error

    def _count(self, refused: int) -> None:
        """Count refused requests that have no entry."""
        with self._lock:
            self._unrecorded += refused

    def _append(self, build: Callable[[str, int], Record]) -> None:
        with self._lock:
            unrecorded, self._unrecorded = self._unrecorded, 0
        try:
            ports = self._ports()
            ports.log.append(build(timestamp(ports.now()), unrecorded))
        except BaseException as error:
            self._count(unrecorded + 1)  # and this request, which is refused without an entry
            if not isinstance(error, Exception):
                raise
            raise _unrecorded(error) from error

    def _leave_to_parent(self) -> None:
        """Begin anew in a forked process, where another thread may have held the lock."""
        self._lock = threading.Lock()
        self._unrecorded = 0


def _unrecorded(error: Exception) -> ProofError:
    problem = str(error) if isinstance(error, AgentguardError) else type(error).__name__
    message = f"the log of the receiver can't be written: {problem}"
    return ProofError(message, code="proof.unrecorded")
