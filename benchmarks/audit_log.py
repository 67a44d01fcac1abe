"""What the audit log costs: appends, many processes, verification, memory, and growth.

    uv run python benchmarks/audit_log.py [--small N] [--large N] [--full] [--verification]
        [--evidence] [--logs FOLDER] [--json FILE]

Each measured arm has its floor beside it, run alternately with the garbage collector off; the
ratio is the median of the ratios of the repetitions. The floors are in ``states.py``: of an append,
a bare group commit by the same threads (SQLite, WAL, every commit on the disk, one signature a
commit); of a guarded call, that commit under the floor of ``guarded_call.py``; of the verification,
the bare Ed25519 verifications, and without signatures SQLite's rows and their SHA-256. These two
count the CPU time of one process. The verification by several processes stands beside that by
one, in wall time, which other programs disturb. ``--verification`` leaves out all but the
verifications, and ``--evidence`` measures the evidence of all calls of the logs instead, beside the
bare Ed25519 verifications that each file needs. ``--full``
compares logs of 10 thousand and a million entries, which takes half an hour and 3 GB in the
temporary folder.

Beside them stand the load average and the time of a bare fdatasync: past 1 ms what is durable is
void.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from guarded_call import TABLES, VOID_OVER, decide, fdatasync_p50, guarded, rego_floor, samples
from measuring import (
    Row,
    apart,
    compared,
    middle,
    no_collection,
    peak,
    ratio,
    show,
    timed,
    tracked,
)
from states import State, fill, found, group_commit
from verification import evidence, shared_out, verification

from agentguard import Guard
from agentguard.audit.entry import Record
from agentguard.domain.verify import examine

Arms = Literal["all", "verification", "evidence"]

CALLERS = (1, 8, 32)
PROCESSES = THREADS = 8
EACH = 50
"""Calls of each of those threads."""


def main() -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", type=int, default=2_000, help="entries of the smaller log")
    parser.add_argument("--large", type=int, default=20_000, help="entries of the larger log")
    parser.add_argument("--full", action="store_true", help="10 thousand and a million entries")
    parser.add_argument("--verification", action="store_true", help="verify the logs, and no more")
    parser.add_argument("--evidence", action="store_true", help="the evidence of all calls alone")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--logs", type=Path, help="where the logs are kept for the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = (10_000, 1_000_000) if options.full else (options.small, options.large)
    arms: Arms = "all"
    if options.evidence or options.verification:
        arms = "evidence" if options.evidence else "verification"
    figures = run(sizes, options.repetitions, options.logs, arms)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(
    sizes: Sequence[int], repetitions: int, logs: Path | None, arms: Arms = "all"
) -> dict[str, Any]:
    """Measure everything or some of the arms, and return the figures."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load, probe = os.getloadavg()[0], fdatasync_p50(folder)
        if arms == "all":
            rows += appends(folder, repetitions)
            rows += calls(folder, repetitions)
            rows += processes(folder)
        states = [filled((logs or folder) / f"log-{size}", size) for size in sizes]
        if arms == "evidence":
            rows += evidence(states, repetitions)
        else:
            rows += verification(states, repetitions)
            rows += [shared_out(state, repetitions) for state in states]
        if arms == "all":
            rows += openings(states, repetitions)
            rows += reading(states)
            rows += memory(folder, states)
            rows += growth(states, repetitions)
        probes = (probe, fdatasync_p50(folder))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "entries": sizes,
        "load_average": [load, os.getloadavg()[0]],
        "fdatasync_p50_us": [round(probe, 1) for probe in probes],
        "durable_void": max(probes) > VOID_OVER,
        "results": [row.rounded()._asdict() for row in rows],
    }


# --- appends and calls -----------------------------------------------------------------------


def appends(folder: Path, repetitions: int) -> Iterator[Row]:
    """Append the authorization of a call, with its arguments beside it."""
    record = authorization(folder)
    for callers in CALLERS:
        log = found(folder / f"appends-{callers}").log()
        with group_commit(folder / f"appends-{callers}.sqlite") as bare:
            yield compared(
                f"append, {callers} callers",
                "records/s",
                [partial(bare.append, [record.body])] * callers,
                [partial(log.append, record)] * callers,
                repetitions,
            )
        log.close()


def authorization(folder: Path) -> Record:
    """Return the record of one real call."""
    with found(folder / "record").guard() as guard:
        guarded(guard)()
        stored = [*guard.reader().stored()][-2]
    if stored.summary is None:
        raise ValueError(stored)
    return Record(stored.body, stored.summary, tuple(stored.attachments))


def calls(folder: Path, repetitions: int) -> Iterator[Row]:
    """Make guarded calls from several threads of one process."""
    with Guard.ephemeral(decide, config=TABLES) as guard:
        document, bodies = samples(guard)
    for callers in CALLERS:
        state = found(folder / f"calls-{callers}")
        with state.guard() as guard, group_commit(folder / f"calls-{callers}.sqlite") as bare:
            yield compared(
                f"guarded call, {callers} callers",
                "calls/s",
                [rego_floor(document, bodies, bare.append) for _ in range(callers)],
                [guarded(guard)] * callers,
                repetitions,
            )


# --- many processes --------------------------------------------------------------------------


def processes(folder: Path) -> Iterator[Row]:
    """Make guarded calls from many processes of many threads each, on one state."""
    state = found(folder / "processes")
    context = get_context("spawn")
    start, results = context.Barrier(PROCESSES), context.Queue()
    workers = [context.Process(target=work, args=(state, start, results)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    times: list[float] = []
    begun, ended = [], []
    for _ in workers:
        began, end, durations = results.get(timeout=600)
        begun.append(began)
        ended.append(end)
        times += durations
    for worker in workers:
        worker.join()
    entries = 2 * len(times) / (max(ended) - min(begun))
    report = examine(state.reader(), state.trust, anchor=state.anchor)
    verdict = "verified" if report.ok and report.anchored and not report.in_doubt else "BROKEN"
    what = f"{PROCESSES} processes, {THREADS} threads each"
    hundredths = statistics.quantiles(times, n=100)
    yield Row(f"{what}", "entries/s", None, entries, None, verdict)
    yield Row(f"{what}: p50", "ms", None, hundredths[49], None)
    yield Row(f"{what}: p99", "ms", None, hundredths[98], None, "of a call; target 20")


def work(state: State, start: Any, results: Any) -> None:
    """Be one of the processes: make calls, and hand over how long each took (ms)."""
    times: list[float] = []
    with state.guard() as guard:
        call = guarded(guard)

        def repeat() -> None:
            for _ in range(EACH):
                started = time.perf_counter()
                call()
                times.append((time.perf_counter() - started) * 1e3)

        call()
        start.wait()
        began = time.monotonic()
        with no_collection():
            threads = [threading.Thread(target=repeat) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        end = time.monotonic()
    results.put((began, end, times))


# --- opening ---------------------------------------------------------------------------------


def openings(states: Sequence[State], repetitions: int) -> Iterator[Row]:
    """Open a guard on each log."""
    for state in states:
        cost = middle([opening(state) for _ in range(repetitions)])
        note = "CPU; the two keys are decrypted"
        yield Row(f"open a guard, {state.size} entries", "ms", None, cost, None, note)


def opening(state: State) -> float:
    """Return the CPU time of opening a guard, in ms; it closes again untimed."""
    started = time.process_time()
    guard = state.guard()
    cost = (time.process_time() - started) * 1e3
    guard.close()
    return cost


# --- reading, memory, growth -----------------------------------------------------------------


def reading(states: Sequence[State]) -> Iterator[Row]:
    """Run the commands that look at a log."""
    for state in states:
        size = state.size
        stored = state.reader().entry(size // 2)
        wanted = stored.summary.invocation_id if stored and stored.summary else None
        commands = {
            "--help": ["--help"],
            "audit list -n 50": ["audit", "list", "-n", "50"],
            "audit show": ["audit", "show", str(wanted)],
            "evidence make": ["evidence", "make", str(wanted), "-o", "-"],
        }
        for name, arguments in commands.items():
            yield Row(
                f"agentguard {name}, {size} entries", "ms", None, command(state, arguments), None
            )


def command(state: State, arguments: Sequence[str]) -> float:
    """Return the median time of a command, in ms."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(  # noqa: S603  the command line of this project
            [sys.executable, "-m", "agentguard.cli", *arguments],
            cwd=state.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        times.append((time.perf_counter() - started) * 1e3)
    return middle(times)


def memory(folder: Path, states: Sequence[State]) -> Iterator[Row]:
    """Measure what processes hold at most: a guard's, and a verification's."""
    yield Row("memory of a guard, new log", "MB", None, apart(calling, found(folder / "new")), None)
    for state in states:
        name = f"{state.size} entries"
        yield Row(
            f"memory of a guard, {name}", "MB", None, apart(calling, state), None, "target 100"
        )
        yield Row(f"memory of verify, {name}", "MB", None, apart(verifying, state), None)


def calling(state: State) -> float:
    """Make a hundred calls; return the most memory that this process has held (MB)."""
    with state.guard() as guard:
        call = guarded(guard)
        for _ in range(100):
            call()
    return peak()


def verifying(state: State) -> float:
    """Verify the log; return the most memory that this process has held (MB)."""
    examine(state.reader(), state.trust, anchor=state.anchor)
    return peak()


def growth(states: Sequence[State], repetitions: int) -> Iterator[Row]:
    """Make calls on the smaller and the larger log, alternately."""
    small, large = states
    costs: tuple[list[float], list[float]] = ([], [])
    with small.guard() as first, large.guard() as second, no_collection():
        both = guarded(first), guarded(second)
        for call in both:
            timed(call)
        for _ in tracked(range(4 * repetitions), "growth"):
            for call, cost in zip(both, costs, strict=True):
                cost.append(timed(call))
    yield Row(
        "guarded call, smaller and larger log",
        "µs",
        middle(costs[0]),
        middle(costs[1]),
        ratio(costs[1], costs[0]),
        "flat: 1",
    )


# --- figures ---------------------------------------------------------------------------------


def filled(folder: Path, size: int) -> State:
    """Make a log of a size, unless it is there already."""
    if not folder.exists():
        half = folder.with_suffix(".unfinished")
        for _ in tracked(fill(found(half), size), f"a log of {size} entries", size // 2):
            pass
        half.rename(folder)
    return State(folder)


if __name__ == "__main__":
    main()
