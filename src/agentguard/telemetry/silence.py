"""Detects whether nobody receives telemetry: no SDK is set up, or the API is not imported.

In a process that has not imported OpenTelemetry's API no span can be current. So a call reads the
current span only where the API is imported already. A call does not wait for an import of the API
that can never end (``is_held_up``).
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from typing import Final, Self
from weakref import WeakMethod

from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.waiting import SOURCES, Waiting

_PROVIDERS: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""The environment variables that make the API set up an SDK as soon as it is imported."""

_PARTS: Final = ("opentelemetry", "agentguard.telemetry.")
_API: Final = "opentelemetry"
_OURS: Final = "agentguard.telemetry.calls"
"""The module that a traced call imports last: where it is loaded, a call imports nothing."""


class _Imports:
    """Whether all imports of a call have come to their end, after which none can hold a call up."""

    are_over = False


_STUCK: Final[set[str]] = set()
"""Modules that another thread was importing when this process was forked.

Here the import never ends.
"""


def is_api_loaded() -> bool:
    """Whether OpenTelemetry is imported in this process, and its submodules can be imported too."""
    return _Imports.are_over or (_API in sys.modules and not is_held_up())


def is_held_up() -> bool:
    """Whether an import of the API would wait for ever, or find the API half imported.

    Both happen in a fork whose parent was importing the API in another thread, and in a signal
    handler that interrupts the import.
    """
    me = threading.get_ident()
    held = _STUCK.union(name for name, owner in _imports() if owner == me)
    if _OURS in sys.modules and _OURS not in held:
        return False
    return any(name.startswith(_PARTS) for name in held)


def _imports() -> list[tuple[str, int | None]]:
    """Return each import in progress with the id of its thread; only CPython has the list."""
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    held = [(name, lock()) for name, lock in [*locks.items()]]
    return [(name, getattr(lock, "owner", None)) for name, lock in held if lock is not None]


@fails_open
def _forked() -> None:
    me = threading.get_ident()
    _STUCK.update(name for name, owner in _imports() if owner != me)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@fails_open
def watch_pending(waiting: Waiting) -> None:
    """Let the metrics call ``waiting`` for as long as the method's object lives."""
    SOURCES.append(WeakMethod(waiting, SOURCES.remove))
    if any(map(os.environ.get, _PROVIDERS)) and not is_held_up():
        import_module("opentelemetry.trace")
    if is_api_loaded():
        from agentguard.telemetry import metrics  # noqa: PLC0415  it imports the API

        metrics.is_set_up()  # creates the instruments that observe


def is_silent() -> bool:
    """Whether no SDK for traces and no SDK for metrics is set up."""
    return _API not in sys.modules or bool(_has_no_sdk())


@fails_open
def _has_no_sdk() -> bool:
    if not is_api_loaded():
        return True
    from agentguard.telemetry import metrics, tracing  # noqa: PLC0415  they import the API

    if not _Imports.are_over:
        import_module(_OURS)
        _Imports.are_over = True
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
        return self.asks() if _API in sys.modules else None

    @fails_open
    def asks(self) -> str | None:
        """Return the span around the call as a ``traceparent``."""
        if not is_api_loaded():
            return None
        from agentguard.telemetry import tracing  # noqa: PLC0415  it imports the API

        return tracing.current()

    def _nothing(self, *_event: object) -> None:
        """Do nothing."""

    decided = requested = waits = answered = recorded = outcome = end = _nothing
    suspended = handed_on = _nothing
    __enter__ = __exit__ = _nothing
