"""Where nobody listens: no SDK of OpenTelemetry is set up, or its API is not even imported.

A span can be current only in a process that has imported the API. So a program without it does not
load it for agentguard's sake either. Nor does a call wait for an import that nobody ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Final, Self
from weakref import WeakMethod

from agentguard.telemetry.failing import fails_open

_PROVIDERS: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""The variables with which the API itself sets up an SDK, once it is imported."""

Waiting = Callable[[], tuple[str, object, int] | None]
"""Returns a trust domain, one of its states, and how many requests wait there; or None."""

SOURCES: Final[list[WeakMethod[Waiting]]] = []
"""What the metrics count as requests that wait."""


_PARTS: Final = ("opentelemetry", "agentguard.telemetry.")
_OURS: Final = "agentguard.telemetry.calls"
"""What a call that is traced needs: with it all the rest is there that a call imports."""

_STUCK: Final[set[str]] = set()
"""What other threads imported when this process was forked from theirs: nobody goes on with it."""


def is_api_loaded() -> bool:
    """Whether anything of OpenTelemetry is imported in this process, and more can be."""
    return "opentelemetry" in sys.modules and not is_held_up()


def is_held_up() -> bool:
    """Whether to import the API now would be to wait for ever, or to find a half of it.

    That is so in a fork while whose beginning another thread imported it, and in a signal handler
    that interrupts the import.
    """
    me = threading.get_ident()
    held = _STUCK.union(name for name, owner in _imports() if owner == me)
    if _OURS in sys.modules and _OURS not in held:
        return False
    return any(name.startswith(_PARTS) for name in held)


def _imports() -> list[tuple[str, int | None]]:
    """Return what is being imported, and by which thread; only CPython tells."""
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
    """Have what a method counts observed as long as its object is there."""
    SOURCES.append(WeakMethod(waiting, SOURCES.remove))
    if any(map(os.environ.get, _PROVIDERS)) and not is_held_up():
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


class SilentSpan:
    """The span of an agent's work where the API can't be imported (``agents.AgentSpan``)."""

    context = traceparent = None
    parent_id = 0

    def end(self, error: BaseException | None = None) -> None:
        """Take no notice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        """Take no notice."""


class Silent:
    """Watches nothing: there is no SDK (``effects.CallListener``)."""

    def begin(self, *_told: object) -> str | None:
        """Return the span around the call, which may come from another process."""
        return self.asks()

    @fails_open
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
