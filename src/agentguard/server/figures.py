"""What a server has done so far, for ``agentguard server status`` and for metrics."""

from __future__ import annotations

import threading
import time
from importlib.metadata import version
from typing import Any

from agentguard.wire.frame import Frame


class Figures:
    """Counts the requests of clients since the server's start. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._version = version("agentguard")
        self._requests = 0
        self._denials = 0

    def count(self, reply: Frame) -> None:
        """Count a request, and whether the request's answer is the denial of a call."""
        is_denial = reply.header.get("step") == "denied"
        with self._lock:
            self._requests += 1
            self._denials += is_denial

    def as_json(self) -> dict[str, Any]:
        """Return the version, the seconds since the start, the requests and the denials."""
        return {
            "version": self._version,
            "uptime": int(time.monotonic() - self._started),
            "requests": self._requests,
            "denials": self._denials,
        }
