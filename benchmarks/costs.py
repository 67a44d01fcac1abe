"""What a user pays: a tool call, a LangGraph turn and a crew's task, with and without the guard.

    uv run python benchmarks/costs.py [--repetitions N] [--calls N] [--json FILE]

One table, in wall time, for whoever asks how much slower a program becomes. Models answer at once
and tools do nothing: a row shows what the framework and the guard cost by themselves. The
``floor`` is the same program without a guard, and writes nothing to a disk. Both programs run
alternately, with the garbage collector off. Times are medians. Policies are in Rego.
``guarded_call.py`` compares a call with the least that its guarantees need; ``langgraph_turns.py``
and ``crews.py`` have more rows of each framework. If a bare fdatasync takes more than 1 ms, the
rows on disk are void.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import crews
import langgraph_turns
import states
from guarded_call import ARGUMENTS, VOID_OVER, fdatasync_p50, guarded, measure
from measuring import Row, command, figures, middle, no_collection, ratio, tracked

from agentguard import Guard


def plain(repo: str, branch: str) -> str:
    """Do what the guarded tool does."""
    return f"{repo} {branch}"


def tool_call(where: str, guard: Guard, options: Any) -> Row:
    """Return microseconds of a call of a Python function, and of the same function guarded."""
    call, clock = guarded(guard), time.perf_counter
    floors: list[float] = []
    times: list[float] = []
    with no_collection():
        for _ in tracked(range(options.repetitions), f"tool call, {where}"):
            floors.append(measure(lambda: plain(**ARGUMENTS), clock, options.calls))
            times.append(measure(call, clock, options.calls))
    added = middle([one - floor for one, floor in zip(times, floors, strict=True)])
    note = f"{added:,.0f} µs added"
    return Row(
        f"tool call, {where}", "µs", middle(floors), middle(times), ratio(times, floors), note
    )


def rows_of(where: str, guard: Guard, options: Any) -> Iterator[Row]:
    """Yield the rows of a tool call, a turn and a task, for a guard in memory or on disk."""
    yield tool_call(where, guard, options)
    turn = langgraph_turns.guarded(guard, is_new=False)
    bare = langgraph_turns.unguarded()
    what = f"LangGraph turn with one tool, {where}"
    yield asyncio.run(langgraph_turns.measured(what, bare, turn, 1, options))
    clock = time.perf_counter
    yield crews.measured(
        f"crew's task with one tool, {where}", crews.in_a_task, guard, clock, options
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, in memory and durable, and return the figures."""
    options.turns = options.calls
    with states.both_guards() as (folder, in_memory, on_disk):
        before = os.getloadavg()[0], fdatasync_p50(folder)
        rows = [
            *rows_of("in memory", in_memory, options),
            *rows_of("on disk", on_disk, options),
        ]
        after = os.getloadavg()[0], fdatasync_p50(folder)
    return figures("agentguard", before, after, rows, void_over=VOID_OVER)


if __name__ == "__main__":
    command(str(__doc__), "what a guard adds", run, repetitions=9, calls=30)
