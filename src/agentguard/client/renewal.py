"""``Renewal``: has a link open a new connection before the token or certificate of the last ends.

A client that is idle, or whose tool runs for long, sends nothing. Without a connection the server
would forget its session, and leave its calls in doubt. So a thread renews the connection in time.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Final, Protocol

from agentguard.errors import AgentguardError

_LOGGER = logging.getLogger("agentguard")

PART: Final = 0.75
"""The part of a connection's time after which the next connection is opened."""

_SOONEST: Final = 0.5
"""Seconds between two renewals at least."""

_RETRY: Final = 5.0
"""Seconds between two tries."""


class Renewable(Protocol):
    """What has connections to renew."""

    def renew(self) -> None:
        """Open a connection with a new token or certificate; raises ``AgentguardError``."""


class Renewal:
    """The thread of one link, which begins with the first connection that ends.

    The thread does not keep the link alive, and ends with it.
    """

    def __init__(self, link: Renewable) -> None:
        self._link = weakref.ref(link)
        self._changed = threading.Condition()
        self._due: float | None = None  # of the monotonic clock
        self._thread: threading.Thread | None = None
        self._has_ended = False
        weakref.finalize(link, self.end)

    def schedule(self, seconds: float | None) -> None:
        """Renew in time for the end of a connection that may serve for so many ``seconds``.

        None is for a connection that does not end.
        """
        if seconds is not None:
            self._schedule(max(seconds * PART, _SOONEST))

    def _schedule(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        with self._changed:
            self._due = due if self._due is None else max(self._due, due)
            self._changed.notify()
            if self._thread is None and not self._has_ended:
                self._thread = threading.Thread(
                    target=self._work, name="agentguard-renewal", daemon=True
                )
                self._thread.start()

    def end(self) -> None:
        """Renew nothing any more.

        Waits for no lock: in a forked process, a thread of the parent may have it for ever. A
        thread that hears nothing ends when the next renewal is due.
        """
        self._has_ended = True
        if self._changed.acquire(blocking=False):
            self._changed.notify()
            self._changed.release()

    def _work(self) -> None:
        has_failed = False
        while self._waited():
            link = self._link()
            if link is None:
                return
            try:
                link.renew()
            except AgentguardError as error:
                if not has_failed:
                    _LOGGER.warning("the connection to the guard server is not renewed: %s", error)
                self._schedule(_RETRY)
                has_failed = True
            else:
                has_failed = False
            del link

    def _waited(self) -> bool:
        """Wait until a renewal is due; return False at the end."""
        with self._changed:
            while not self._has_ended:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    self._due = None
                    return True
                self._changed.wait(left)
        return False
