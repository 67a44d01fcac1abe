"""Detects whether nobody receives telemetry: no SDK is set up, or the API is not imported.

In a process that has not imported OpenTelemetry's API no span can be current. So a call reads the
current span, and imports what it needs for that, only where the API is imported already.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final, Self
from weakref import WeakMethod

from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.waiting import SOURCES, Waiting

_PROVIDERS: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""The environment variables that make the API set up an SDK as soon as it is imported."""

_API: Final = "opentelemetry"


@fails_open
def watch_pending(waiting: Waiting) -> None:
    """Let the metrics call ``waiting`` for as long as the method's object lives."""
    SOURCES.append(WeakMethod(waiting, SOURCES.remove))
    if any(map(os.environ.get, _PROVIDERS)):
        import_module("opentelemetry.trace")
    if _API in sys.modules:
        from agentguard.telemetry import metrics  # noqa: PLC0415  it imports the API

        metrics.is_set_up()  # creates the instruments that observe


def is_silent() -> bool:
    """Whether no SDK for traces and no SDK for metrics is set up."""
    return _API not in sys.modules or bool(_has_no_sdk())


@fails_open
def _has_no_sdk() -> bool:
    from agentguard.telemetry import metrics, tracing  # noqa: PLC0415  they import the API

    return tracing.tracer() is None and not metrics.is_set_up()


class SilentSpan:
    """Stands in for ``agents.AgentSpan`` where the API can't be imported."""

    context = traceparent = None
    parent_id = 0

    def end(self, error: BaseException | None = None) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        """Do nothing."""


class Silent:
    """A ``CallListener`` that does nothing, for a process without an SDK."""

    def begin(self, *_event: object) -> str | None:
        """Return the current span, which may belong to another process, as a ``traceparent``."""
        return self.asks()

    @fails_open
    def asks(self) -> str | None:
        """Return the span around the call as a ``traceparent``."""
        if _API not in sys.modules:
            return None
        from agentguard.telemetry import tracing  # noqa: PLC0415  it imports the API

        return tracing.current()

    def _nothing(self, *_event: object) -> None:
        """Do nothing."""

    decided = requested = waits = answered = recorded = outcome = end = _nothing
    suspended = handed_on = _nothing
    __enter__ = __exit__ = _nothing
