"""The metrics: how many calls and how they were answered, how long that took, and what waits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from agentguard.telemetry import names
from agentguard.telemetry.tracing import fails_open

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAITS: Final = (1, 5, 15, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)

_METER: Final = metrics.get_meter(names.SCOPE)
_CALLS: Final = _METER.create_counter(
    names.CALLS, unit="{call}", description="Guarded calls, by the answer to them"
)
_DECISION: Final = _METER.create_histogram(
    names.DECISION_DURATION,
    unit="s",
    description="From the beginning of a guarded call to its answer, on record",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
_APPROVAL: Final = _METER.create_histogram(
    names.APPROVAL_DURATION,
    unit="s",
    description="From the request for an approval to the answer that settles it",
    explicit_bucket_boundaries_advisory=_WAITS,
)


@fails_open
def count_call(*, decision: str, code: str, agent: str, tool: str, seconds: float) -> None:
    """Count a call that was answered, after so many ``seconds``."""
    attributes = {names.DECISION: decision, names.GEN_AI_AGENT_NAME: agent, names.TOOL_NAME: tool}
    _DECISION.record(seconds, {names.DECISION: decision})
    _CALLS.add(1, {**attributes, names.ERROR_TYPE: code} if code else attributes)


@fails_open
def record_approval(seconds: int, *, verdict: str, tool: str) -> None:
    """Record how long people have taken to answer."""
    _APPROVAL.record(seconds, {names.APPROVAL_STATUS: verdict, names.TOOL_NAME: tool})


class Waiting(Protocol):
    """Knows what waits for an approval (a guard)."""

    def waiting(self) -> tuple[str, int]:
        """Return the trust domain, and how many requests wait."""


_SOURCES: Final[weakref.WeakSet[Waiting]] = weakref.WeakSet()


def watch_pending(source: Waiting) -> None:
    """Have the requests that wait at ``source`` counted whenever metrics are collected."""
    _SOURCES.add(source)


def _pending(_options: CallbackOptions) -> Iterable[Observation]:
    counts: dict[str, int] = {}
    for source in list(_SOURCES):
        found = _counted(source.waiting)
        if found is not None:  # guards of one state see the same requests
            counts[found[0]] = max(found[1], counts.get(found[0], 0))
    return [Observation(many, {"agentguard.trust_domain": who}) for who, many in counts.items()]


@fails_open
def _counted(waiting: Callable[[], tuple[str, int]]) -> tuple[str, int] | None:
    return waiting()


_METER.create_observable_gauge(
    names.APPROVALS_PENDING,
    callbacks=[_pending],
    unit="{request}",
    description="Requests for an approval that wait for people",
)
