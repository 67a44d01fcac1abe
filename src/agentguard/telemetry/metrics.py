"""The metrics: calls by decision, the time that decisions and approvals take, waiting requests."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from agentguard.telemetry import names
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.waiting import SOURCES, Waiting

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAITS: Final = (1, 5, 15, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)


class _Instruments(NamedTuple):
    calls: Counter
    decision: Histogram
    approval: Histogram


class _Cache:
    """The instruments of the latest provider."""

    provider: object = None
    instruments: _Instruments | None = None


def _instruments() -> _Instruments | None:
    """Return the instruments; None where no SDK is set up."""
    provider = metrics.get_meter_provider()
    if provider is not _Cache.provider:
        # the API's own providers are silent; the API has no public class for its proxy of an SDK
        silent = type(provider).__module__.startswith("opentelemetry.metrics")
        _Cache.instruments = None if silent else _created(provider.get_meter(*names.scope()))
        _Cache.provider = provider
    return _Cache.instruments


@fails_open
def is_set_up() -> bool:
    """Whether an SDK for metrics is set up."""
    return _instruments() is not None


def _created(meter: Meter) -> _Instruments:
    meter.create_observable_up_down_counter(  # the counts of several processes add up
        names.APPROVALS_PENDING,
        callbacks=[_pending],
        unit="{request}",
        description="Requests for an approval that wait for people",
    )
    return _Instruments(
        meter.create_counter(names.CALLS, unit="{call}", description="Guarded calls, by decision"),
        meter.create_histogram(
            names.DECISION_DURATION,
            unit="s",
            description="From the beginning of a guarded call to its recorded decision",
            explicit_bucket_boundaries_advisory=_SECONDS,
        ),
        meter.create_histogram(
            names.APPROVAL_DURATION,
            unit="s",
            description="From the request for an approval to the answer that decides it",
            explicit_bucket_boundaries_advisory=_WAITS,
        ),
    )


@fails_open
def count_call(
    about: Mapping[str, str | bool], decided: Mapping[str, str | bool], *, seconds: float
) -> None:
    """Count a call, decided after ``seconds``; ``decided`` are the decision's attributes."""
    instruments = _instruments()
    if instruments is not None:
        instruments.decision.record(seconds, decided)
        instruments.calls.add(1, about)


@fails_open
def record_approval(seconds: int, *, verdict: str, tool: str) -> None:
    """Record the ``seconds`` that people took to answer."""
    instruments = _instruments()
    if instruments is not None:
        attributes = {names.APPROVAL_STATUS: verdict, names.TOOL_NAME: tool}
        instruments.approval.record(seconds, attributes)


def _pending(_options: CallbackOptions) -> Iterable[Observation]:
    states: dict[tuple[str, object], int] = {}
    for source in SOURCES.copy():
        waiting = source()
        count = _counted(waiting) if waiting is not None else None
        if count is not None:  # guards of one state see the same requests
            domain, state, requests = count
            states[domain, state] = requests
    counts: Counts[str] = Counts()
    for (domain, _state), requests in states.items():
        counts[domain] += requests
    return [Observation(count, {names.TRUST_DOMAIN: domain}) for domain, count in counts.items()]


@fails_open
def _counted(waiting: Waiting) -> tuple[str, object, int] | None:
    return waiting()
