"""What telemetry adds to a guarded call: without an SDK, sampled out, recording, and sent.

    uv run python benchmarks/telemetry.py [--repetitions N] [--calls N] [--json FILE]

The call is that of ``guarded_call.py``, in memory, with a policy in Rego, and so is the floor
beside which each arm is measured, run alternately, in CPU time of this thread, with the garbage
collector off. ``recording`` ends its spans in a processor that drops them, as where an exporter is
slow; ``sent`` encodes them for OTLP as well, in batches, in the same thread, which an application
leaves to a background thread. There are no metrics.

The SDK's own share is measured in the same run: a call without telemetry, and beside it a plain
span. That has the attributes and events of the call's span, begins with those that it begins with,
is once the current one, and ends. It is not measured by itself, where all that it touches would
be in the processor's caches.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import POLICY, TABLES, guarded, measure, rego_floor, samples
from measuring import CONSOLE, middle, no_collection, ratio, tracked
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import Tracer
from rich.table import Table

from agentguard import Guard

_BATCH = 512


class Dropping(SpanProcessor):
    """Takes spans and drops them."""


class Encoding(SpanProcessor):
    """Encodes spans for OTLP, in batches as the SDK's processor makes them."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it, and encode what was kept."""
        self._spans.append(span)
        if len(self._spans) == _BATCH:
            self.force_flush()

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002
        """Encode what was kept."""
        encode_spans(self._spans).SerializeToString()
        self._spans.clear()
        return True


class Sample(SpanProcessor):
    """Keeps what a guarded call's span begins with, and what it has in the end."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Keep what it begins with."""
        self.begun = dict(span.attributes or {})

    def on_end(self, span: ReadableSpan) -> None:
        """Keep what it has come to."""
        self.name, self.events = span.name, span.events
        attributes = span.attributes or {}
        self.later = {name: attributes[name] for name in attributes if name not in self.begun}

    def beside(self, call: Callable[[], object], tracer: Tracer) -> Callable[[], object]:
        """Return a call, and beside it a span like its own, by the SDK alone."""
        events = [(event.name, dict(event.attributes or {})) for event in self.events]

        def once() -> None:
            call()
            span = tracer.start_span(self.name, attributes=self.begun, start_time=time.time_ns())
            context.detach(context.attach(trace.set_span_in_context(span)))
            if span.is_recording():
                for name, attributes in events:
                    span.add_event(name, attributes)
                span.set_attributes(self.later)
            span.end()

        return once


class Arm(NamedTuple):
    """One way of telemetry."""

    name: str
    sampler: Sampler
    processor: Callable[[], SpanProcessor] = Dropping

    def provider(self) -> TracerProvider:
        """Set up an SDK, which is not in force."""
        made = TracerProvider(sampler=self.sampler, shutdown_on_exit=False)
        made.add_span_processor(self.processor())
        return made


ARMS = (
    Arm("sampled out", ALWAYS_OFF),
    Arm("recording", ALWAYS_ON),
    Arm("sent", ALWAYS_ON, Encoding),
)
OFF = "off"
"""No SDK at all."""


@contextmanager
def in_force(provider: TracerProvider) -> Iterator[None]:
    """Put an SDK in force in this process."""
    # the API lets a provider be set once: a benchmark has several
    trace._TRACER_PROVIDER = provider  # noqa: SLF001
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = trace.NoOpTracerProvider()  # noqa: SLF001


def sampled(call: Callable[[], object]) -> Sample:
    """Make a call, and return what its span is like."""
    made = Sample()
    with in_force(Arm("", ALWAYS_ON, lambda: made).provider()):
        call()
    return made


def spent(call: Callable[[], object], calls: int, provider: TracerProvider | None = None) -> float:
    """Return the microseconds of one call, with what the spans that it leaves still cost."""
    flush: Callable[[], object] = provider.force_flush if provider is not None else lambda: True
    measure(call, time.thread_time, 8)
    flush()
    started = time.thread_time()
    for _ in range(calls):
        call()
    flush()
    return (time.thread_time() - started) / calls * 1e6


def functions(call: Callable[[], object]) -> int:
    """Return how many functions one call calls, of Python and of C: a measure without a clock."""
    events: list[str] = []
    sys.setprofile(lambda _frame, event, _value: events.append(event))
    try:
        call()
    finally:
        sys.setprofile(None)
    return events.count("call") + events.count("c_call")


def run(repetitions: int, calls: int) -> dict[str, Any]:
    """Measure every arm beside the floor and return the figures."""
    names = (OFF, *(arm.name for arm in ARMS))
    costs: dict[str, list[float]] = {name: [] for name in names}
    plains: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    floors: list[float] = []
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "authz.rego")
        path.write_text(POLICY)
        with Guard.ephemeral(path, config=TABLES) as guard:
            kept: list[list[bytes]] = []
            bare = rego_floor(*samples(guard), kept.append)
            call = guarded(guard)
            sample = sampled(call)
            spent(bare, calls), spent(call, calls)
            with no_collection():
                for _ in tracked(range(repetitions), "telemetry"):
                    floors.append(spent(bare, calls))
                    costs[OFF].append(spent(call, calls))
                    plains[OFF].append(costs[OFF][-1])
                    counts[OFF].append((functions(call), functions(call)))
                    for arm in ARMS:
                        provider = arm.provider()
                        both = sample.beside(call, provider.get_tracer("plain"))
                        plains[arm.name].append(spent(both, calls, provider))
                        beside = functions(both)
                        with in_force(provider):
                            costs[arm.name].append(spent(call, calls, provider))
                            counts[arm.name].append((functions(call), beside))
    gc.collect()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load_average": [before, os.getloadavg()[0]],
        "floor_us": round(middle(floors), 1),
        "results": [
            {
                **row(name, costs[name], costs[OFF], floors, plains[name]),
                "functions": min(made for made, _ in counts[name]),
                "functions_with_plain": min(made for _, made in counts[name]),
            }
            for name in names
        ],
    }


def row(
    name: str,
    costs: Sequence[float],
    off: Sequence[float],
    floors: Sequence[float],
    plains: Sequence[float],
) -> dict[str, Any]:
    """Return the figures of one arm; ``plains`` are of calls without telemetry and a plain span."""
    with_span = [base + plain - o for base, plain, o in zip(floors, plains, off, strict=True)]
    return {
        "arm": name,
        "call_us": round(middle(costs), 1),
        "added_us": added(costs, off),
        "plain_added_us": added(plains, off),
        "ratio_to_off": round(ratio(costs, off), 2),
        "ratio_to_off_and_plain": round(ratio(costs, plains), 2),
        "ratio_to_floor": round(ratio(costs, floors), 2),
        "ratio_to_floor_and_plain": round(ratio(costs, with_span), 2),
    }


def added(costs: Sequence[float], off: Sequence[float]) -> float:
    """Return the microseconds that are added to a call without telemetry."""
    return round(middle([cost - without for cost, without in zip(costs, off, strict=True)]), 1)


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"telemetry of a guarded call ({figures['machine']})")
    times = ("call µs", "added", "plain adds", "to off", "+ plain", "to floor", "+ plain")
    headings = (*times, "functions", "off + plain")
    table.add_column("arm")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in figures["results"]:
        table.add_row(*(str(value) for value in result.values()))
    CONSOLE.print(table)
    loads = " and ".join(f"{load:.1f}" for load in figures["load_average"])
    CONSOLE.print("plain: a span with the same attributes and events, by the SDK alone")
    CONSOLE.print("functions: of Python and of C that a call calls at least; no load changes that")
    CONSOLE.print(f"floor {figures['floor_us']} µs; load average before and after: {loads}")


def main() -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = run(options.repetitions, options.calls)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
