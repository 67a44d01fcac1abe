"""How the benchmarks of the log and of delegation measure and print.

What they measure stands in ``audit_log.py`` and ``delegation.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

T = TypeVar("T")

CONSOLE = Console()
WIDTH = 160
"""Columns of the table where it is written into a file."""
PERIOD = 0.5
"""Seconds for which threads make calls, each time."""


class Row(NamedTuple):
    """One line of the table; ``ratio`` is to the floor, or to the smaller log."""

    what: str
    unit: str
    floor: float | None
    measured: float
    ratio: float | None
    note: str = ""

    def rounded(self) -> Row:
        """Return the row with numbers of four digits."""
        return self._replace(
            floor=_four(self.floor), measured=_four(self.measured) or 0.0, ratio=_four(self.ratio)
        )


def _four(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None else None


def compared(
    what: str,
    unit: str,
    bare: Sequence[Callable[[], object]],
    measured: Sequence[Callable[[], object]],
    repetitions: int,
) -> Row:
    """Run a function in each thread, the floor's and the measured one's alternately."""
    floors, rates = [], []
    rate(bare), rate(measured)  # warm up
    with no_collection():
        for _ in tracked(range(repetitions), what):
            floors.append(rate(bare))
            rates.append(rate(measured))
    return Row(what, unit, middle(floors), middle(rates), ratio(rates, floors))


def rate(functions: Sequence[Callable[[], object]]) -> float:
    """Return how many calls a second these threads make together."""
    made: list[int] = []
    end = time.perf_counter() + PERIOD

    def repeat(function: Callable[[], object]) -> None:
        count = 0
        while time.perf_counter() < end:
            function()
            count += 1
        made.append(count)

    threads = [threading.Thread(target=repeat, args=(function,)) for function in functions]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(made) / (time.perf_counter() - started)


def timed(call: Callable[[], object]) -> float:
    """Return the median time of a call, in microseconds."""
    times = []
    for _ in range(100):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    return middle(times)


def apart(function: Callable[[T], float], argument: T) -> float:
    """Call it in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, argument).result()


def peak() -> float:
    """Return the most memory that this process has held (MB), not counting its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(line)


def tracked(steps: Iterable[object], what: str, total: int | None = None) -> Iterable[object]:
    """Show on a terminal how far it is."""
    return track(
        steps, what, total, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal
    )


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(values: Sequence[float], floors: Sequence[float]) -> float:
    """Return the median of the ratios."""
    return middle([value / base for value, base in zip(values, floors, strict=True)])


def figures(
    framework: str,
    before: tuple[float, float],
    after: tuple[float, float],
    rows: Iterable[Row],
    *,
    void_over: float,
) -> dict[str, Any]:
    """Return what ``show`` prints: the machine, the rows, and how quiet the machine was.

    ``framework`` is the distribution that was measured. ``before`` and ``after`` are the load
    average and a bare fdatasync (µs), which makes durable rows void over ``void_over``.
    """
    probes = [round(before[1], 1), round(after[1], 1)]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {framework} {version(framework)}",
        "load_average": [before[0], after[0]],
        "fdatasync_p50_us": probes,
        "durable_void": max(probes) > void_over,
        "results": [row.rounded()._asdict() for row in rows],
    }


def command(
    description: str, title: str, run: Callable[[argparse.Namespace], dict[str, Any]], **counts: int
) -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named.

    Each of ``counts`` is an option, with its default. ``run`` gets the options.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = run(options)
    show(report, title)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def show(figures: dict[str, Any], title: str = "audit log") -> None:
    """Print the figures as a table."""
    table = Table(title=f"{title} ({figures['machine']})")
    for heading in ("what", "unit", "floor", "measured", "ratio", ""):
        numbers = heading in ("floor", "measured", "ratio")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=True)
    for row in figures["results"]:
        table.add_row(*("" if value is None else text(value) for value in row.values()))
    console = CONSOLE if CONSOLE.is_terminal else Console(width=WIDTH)
    console.print(table)
    probes = " and ".join(f"{probe} µs" for probe in figures["fdatasync_p50_us"])
    loads = " and ".join(f"{load:.1f}" for load in figures["load_average"])
    void = " (over 1 ms: what is durable is void)" if figures["durable_void"] else ""
    console.print(f"before and after: load average {loads}, bare fdatasync p50 {probes}{void}")


def text(value: float | str) -> str:
    """Write a cell of the table."""
    return value if isinstance(value, str) else f"{value:,.10g}"
