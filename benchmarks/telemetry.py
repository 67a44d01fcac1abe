"""What telemetry adds to a guarded call: without an SDK, sampled out, recording, and sent.

    uv run python benchmarks/telemetry.py [--repetitions N] [--calls N] [--json FILE]

The call is that of ``guarded_call.py``, in memory, with a policy in Rego, and so is the floor
beside which each arm is measured, run alternately, in CPU time of this thread, with the garbage
collector off. ``recording`` ends its spans in a processor that drops them, as where an exporter is
slow; ``sent`` encodes them for OTLP as well, in batches, in the same thread, which an application
leaves to a background thread. There are no metrics.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import POLICY, TABLES, floor, guarded, measure, samples
from measuring import CONSOLE, middle, no_collection, ratio, tracked
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from rich.table import Table

from agentguard import Guard
from agentguard.engines.rego import RegoEngine

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
            encode_spans(self._spans).SerializeToString()
            self._spans.clear()


class Arm(NamedTuple):
    """One way of telemetry; ``sampler`` None for no SDK at all."""

    name: str
    sampler: Sampler | None
    processor: Callable[[], SpanProcessor] = Dropping

    def put_in_force(self) -> None:
        """Put it in force in this process, in the place of what was."""
        provider: trace.TracerProvider = trace.NoOpTracerProvider()
        if self.sampler is not None:
            made = TracerProvider(sampler=self.sampler, shutdown_on_exit=False)
            made.add_span_processor(self.processor())
            provider = made
        # the API lets a provider be set once: a benchmark has several
        trace._TRACER_PROVIDER = provider  # noqa: SLF001


ARMS = (
    Arm("off", None),
    Arm("sampled out", ALWAYS_OFF),
    Arm("recording", ALWAYS_ON),
    Arm("sent", ALWAYS_ON, Encoding),
)


def run(repetitions: int, calls: int) -> dict[str, Any]:
    """Measure every arm beside the floor and return the figures."""
    costs: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    floors: list[float] = []
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "authz.rego")
        path.write_text(POLICY)
        ARMS[0].put_in_force()
        with Guard.ephemeral(path, config=TABLES) as guard, closing(RegoEngine.load(path)) as rego:
            kept: list[list[bytes]] = []
            bare = floor(rego, *samples(guard), kept.append)
            call = guarded(guard)
            measure(bare, time.thread_time, calls)
            measure(call, time.thread_time, calls)
            with no_collection():
                for _ in tracked(range(repetitions), "telemetry"):
                    floors.append(measure(bare, time.thread_time, calls))
                    for arm in ARMS:
                        arm.put_in_force()
                        measure(call, time.thread_time, 8)
                        costs[arm.name].append(measure(call, time.thread_time, calls))
    gc.collect()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load_average": [before, os.getloadavg()[0]],
        "floor_us": round(middle(floors), 1),
        "results": [row(arm.name, costs[arm.name], costs["off"], floors) for arm in ARMS],
    }


def row(
    name: str, costs: Sequence[float], off: Sequence[float], floors: Sequence[float]
) -> dict[str, Any]:
    """Return the figures of one arm."""
    return {
        "arm": name,
        "call_us": round(middle(costs), 1),
        "ratio_to_floor": round(ratio(costs, floors), 2),
        "ratio_to_off": round(ratio(costs, off), 2),
        "added_us": round(middle([c - o for c, o in zip(costs, off, strict=True)]), 1),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"telemetry of a guarded call ({figures['machine']})")
    for heading in ("arm", "call µs", "to the floor", "to off", "added µs"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for result in figures["results"]:
        table.add_row(*(str(value) for value in result.values()))
    CONSOLE.print(table)
    loads = " and ".join(f"{load:.1f}" for load in figures["load_average"])
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
