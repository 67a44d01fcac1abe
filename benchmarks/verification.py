"""What the verification of a log costs, beside its floor, and what several processes gain.

``audit_log.py`` measures these arms on its logs, and says what the floors are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from measuring import Row, middle, no_collection, ratio, tracked
from states import State, bare_rows, bare_signatures

from agentguard.domain.verify import examine
from agentguard.domain.worker_processes import default_jobs

LONG = 100_000
"""Entries past which a log is verified only once, of each kind."""
SAMPLE = 4000
"""Entries of a log whose signatures are verified barely."""


def verification(states: Sequence[State], repetitions: int) -> Iterator[Row]:
    """Verify each log, with every signature and with none."""
    for contents in (True, False):
        slowest = []
        for state in states:
            row, cost = verified(state, repetitions, contents=contents)
            slowest.append(cost)
            yield row
        what = "every signature" if contents else "no signatures"
        growing = slowest[1] / slowest[0]
        yield Row(f"verify, {what}, larger/smaller", "", None, growing, None, "linear: 1")


def verified(state: State, repetitions: int, *, contents: bool) -> tuple[Row, float]:
    """Verify a log beside its floor; return also the CPU time of an entry, in microseconds."""
    floors, costs = [], []
    size = state.size
    bare, sample = bare_signatures(state, SAMPLE) if contents else (bare_rows(state), size)
    signatures = 0
    trust = state.trust
    times = repetitions if size <= LONG else 1
    with no_collection():
        for _ in tracked(range(times), f"verifying {size} entries"):
            started = time.process_time()
            signatures = bare()
            floors.append((time.process_time() - started) / sample * 1e6)
            started = time.process_time()
            report = examine(state.reader(), trust, anchor=state.anchor, contents=contents, jobs=1)
            costs.append((time.process_time() - started) / size * 1e6)
            if not report.ok or not report.anchored:
                raise ValueError(report.problems)
    rates, bare_rates = ([1e6 / cost for cost in each] for each in (costs, floors))
    what = "every signature" if contents else "no signatures"
    over = middle(costs) - middle(floors)
    note = f"{over:.0f} µs an entry above"
    if contents:
        note += f" of {signatures / sample:.2f} signatures"
    row = Row(
        f"verify, {what}, {size} entries",
        "entries/s",
        middle(bare_rates),
        middle(rates),
        ratio(costs, floors),
        note,
    )
    return row, middle(costs)


def shared_out(state: State, repetitions: int) -> Row:
    """Verify a log with several processes, as the command does, beside one, by the clock."""
    rates: dict[int, list[float]] = {1: [], default_jobs(): []}
    size, trust = state.size, state.trust
    with no_collection():
        for _ in tracked(range(repetitions if size <= LONG else 1), f"{size} entries, processes"):
            for jobs, measured in rates.items():
                started = time.perf_counter()
                report = examine(state.reader(), trust, anchor=state.anchor, jobs=jobs)
                measured.append(size / (time.perf_counter() - started))
                if not report.ok or not report.anchored:
                    raise ValueError(report.problems)
    one, several = rates[1], rates[default_jobs()]
    return Row(
        f"verify, {default_jobs()} processes, {size} entries",
        "entries/s",
        middle(one),
        middle(several),
        ratio(several, one),
        "floor: one process",
    )
