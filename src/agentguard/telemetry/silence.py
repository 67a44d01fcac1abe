"""Where nobody listens: no SDK of OpenTelemetry is set up, or its API is not even imported.

A span can be current only in a process that has imported the API. So a program without it does not
load it for agentguard's sake either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Final
from weakref import WeakMethod

from agentguard.telemetry.failing import fails_open

_PROVIDERS: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""The variables with which the API itself sets up an SDK, once it is imported."""

Waiting = Callable[[], tuple[str, object, int] | None]
"""Returns a trust domain, one of its states, and how many requests wait there; or None."""

SOURCES: Final[list[WeakMethod[Waiting]]] = []
"""What the metrics count as requests that wait."""


def is_api_loaded() -> bool:
    """Whether anything of OpenTelemetry is imported in this process."""
    return "opentelemetry" in sys.modules


@fails_open
def watch_pending(waiting: Waiting) -> None:
    """Have what a method counts observed as long as its object is there."""
    SOURCES.append(WeakMethod(waiting, SOURCES.remove))
    if any(map(os.environ.get, _PROVIDERS)):
        import_module("opentelemetry.trace")
    if is_api_loaded():
        from agentguard.telemetry import metrics  # noqa: PLC0415  it imports the API

        metrics.is_set_up()  # which begins to observe


@fails_open
def is_silent() -> bool:
    """Whether nobody traces and nobody counts."""
    if not is_api_loaded():
        return True
    from agentguard.telemetry import metrics, tracing  # noqa: PLC0415  they import the API

    return tracing.tracer() is None and not metrics.is_set_up()


class Silent:
    """Watches nothing: there is no SDK (``effects.Watch``)."""

    def begin(self, *_told: object) -> str | None:
        """Return the span around the call, which may come from another process."""
        return self.asks()

    def asks(self) -> str | None:
        """Return the span around the call."""
        if not is_api_loaded():
            return None
        from agentguard.telemetry import tracing  # noqa: PLC0415  it imports the API

        return tracing.current()

    def _nothing(self, *_told: object) -> None:
        """Take no notice."""

    decided = requested = waits = answered = recorded = outcome = end = _nothing
    suspended = handed_on = _nothing
    __enter__ = __exit__ = _nothing
