"""The metrics: how many calls and how they were answered, how long that took, and what waits."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from agentguard.telemetry import names
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.silence import SOURCES, Waiting

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAITS: Final = (1, 5, 15, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)


class _Instruments(NamedTuple):
    calls: Counter
    decision: Histogram
    approval: Histogram


class _Cache:
    """The instruments of the provider that was in force last."""

    provider: object = None
    instruments: _Instruments | None = None


def _instruments() -> _Instruments | None:
    """Return the instruments; None where no SDK is set up."""
    provider = metrics.get_meter_provider()
    if provider is not _Cache.provider:
        # what the API itself has is silent; of a proxy for the SDK there is no public class
        silent = type(provider).__module__.startswith("opentelemetry.metrics")
        _Cache.instruments = None if silent else _made(provider.get_meter(*names.scope()))
        _Cache.provider = provider
    return _Cache.instruments


@fails_open
def is_set_up() -> bool:
    """Whether anybody counts."""
    return _instruments() is not None


def _made(meter: Meter) -> _Instruments:
    meter.create_observable_up_down_counter(  # what waits in several processes adds up
        names.APPROVALS_PENDING,
        callbacks=[_pending],
        unit="{request}",
        description="Requests for an approval that wait for people",
    )
    return _Instruments(
        meter.create_counter(
            names.CALLS, unit="{call}", description="Guarded calls, by the answer to them"
        ),
        meter.create_histogram(
            names.DECISION_DURATION,
            unit="s",
            description="From the beginning of a guarded call to its answer, on record",
            explicit_bucket_boundaries_advisory=_SECONDS,
        ),
        meter.create_histogram(
            names.APPROVAL_DURATION,
            unit="s",
            description="From the request for an approval to the answer that settles it",
            explicit_bucket_boundaries_advisory=_WAITS,
        ),
    )


@fails_open
def count_call(
    about: Mapping[str, str | bool], decided: Mapping[str, str | bool], *, seconds: float
) -> None:
    """Count a call that was answered after so many ``seconds``; ``decided`` says how alone."""
    made = _instruments()
    if made is not None:
        made.decision.record(seconds, decided)
        made.calls.add(1, about)


@fails_open
def record_approval(seconds: int, *, verdict: str, tool: str) -> None:
    """Record how long people have taken to answer."""
    made = _instruments()
    if made is not None:
        made.approval.record(seconds, {names.APPROVAL_STATUS: verdict, names.TOOL_NAME: tool})


def _pending(_options: CallbackOptions) -> Iterable[Observation]:
    states: dict[tuple[str, object], int] = {}
    for source in SOURCES.copy():
        waiting = source()
        found = _counted(waiting) if waiting is not None else None
        if found is not None:  # guards of one state see the same requests
            domain, state, many = found
            states[domain, state] = many
    counts: Counts[str] = Counts()
    for (domain, _state), many in states.items():
        counts[domain] += many
    return [Observation(many, {names.TRUST_DOMAIN: domain}) for domain, many in counts.items()]


@fails_open
def _counted(waiting: Waiting) -> tuple[str, object, int] | None:
    return waiting()
