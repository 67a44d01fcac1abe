"""What a guard server costs and gains: durable calls of many clients, embedded and served.

    uv run python benchmarks/server.py [--clients N ...] [--seconds S] [--repetitions N]

Each row has a number of clients, as processes or as threads of one process. They make durable calls
of a tool that does nothing, with a policy in Rego: with guards of their own on one state, and as
clients of ``agentguard serve`` on another state, alternately. The ratio is the median of the ratios
of the repetitions. CPU time is of all processes together, for each call. Past 1 ms for a bare
fdatasync the figures tell of the disk alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import POLICY, fdatasync_p50, figures, report, show_table
from rich.progress import Progress
from rich.table import Table

from agentguard import Guard
from agentguard.domain import config, domain

TABLES = """trust_domain = "bench.example"
anchor = "anchor"
[policy]
path = "authz.rego"
[agents.code-reviewer]
type = "code-agent"
authority = "own"
max_scope = ["pr:write"]
[tools.trigger_ci]
attributes = { branch = "branch" }
[tools.open_pr]
attributes = { repo = "repo" }
"""
SERVER = '[server]\nurl = "unix:s"\n'
SPAWN = get_context("spawn")


class Rate(NamedTuple):
    """What clients did together: the calls of a second, and the CPU time of a call in µs."""

    calls: float
    cpu: float


def found(folder: Path, *, is_served: bool) -> None:
    """Make a trust domain in ``folder``, whose passphrase is in the environment."""
    folder.mkdir()
    for name, text in (("authz.rego", POLICY), (config.FILE, TABLES + SERVER * is_served)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    passphrase = os.environ["AGENTGUARD_PASSPHRASE"].encode()
    domain.found(config.load(folder / config.FILE), passphrase, now=datetime.now(UTC))


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Run a guard server for ``folder``; yield the number of its process."""
    words = [sys.executable, "-m", "agentguard.cli", "serve"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as server:  # noqa: S603
        while not (folder / "s").exists():
            time.sleep(0.01)
        yield server.pid
        server.terminate()


def calling(guard: Guard) -> Callable[[], object]:
    """Return one guarded call of a tool that does nothing."""

    @guard.tool(attributes={"branch": "branch"})
    def trigger_ci(repo: str, branch: str) -> str:
        """Start the tests."""
        return f"{repo} {branch}"

    agent = guard.new_agent("code-reviewer")
    return lambda: agent.call(trigger_ci, repo="payments-api", branch="agent/fix-null-check")


def work(folder: Path, threads: int, talk: Connection) -> None:
    """Make calls in some threads, each time for the seconds that ``talk`` says; 0 ends."""
    with Guard.open(folder / config.FILE) as guard:
        call = calling(guard)
        call()
        while seconds := talk.recv():
            made, end, begun = [0] * threads, time.perf_counter() + seconds, time.process_time()

            def repeat(place: int, end: float = end, made: list[int] = made) -> None:
                while time.perf_counter() < end:
                    call()
                    made[place] += 1

            workers = [threading.Thread(target=repeat, args=(place,)) for place in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            talk.send((sum(made), time.process_time() - begun))


class Clients:
    """Processes that make calls on one state, each in some threads."""

    def __init__(self, folder: Path, processes: int, threads: int) -> None:
        ends = [SPAWN.Pipe() for _ in range(processes)]
        self._talks = [here for here, _there in ends]
        self._processes = [
            SPAWN.Process(target=work, args=(folder, threads, there)) for _here, there in ends
        ]
        for process in self._processes:
            process.start()

    def rate(self, seconds: float, server: int | None) -> Rate:
        """Let the clients make calls for some seconds; ``server`` is the server's process."""
        before = cpu_of(server)
        for talk in self._talks:
            talk.send(seconds)
        told = [talk.recv() for talk in self._talks]
        calls = sum(made for made, _cpu in told)
        cpu = sum(cpu for _made, cpu in told) + cpu_of(server) - before
        return Rate(calls / seconds, cpu / calls * 1e6)

    def close(self) -> None:
        """End the processes."""
        for talk in self._talks:
            talk.send(0)
        for process in self._processes:
            process.join()


def cpu_of(process: int | None) -> float:
    """Return the seconds of CPU time that a process has used; 0 for none."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(process: int) -> float:
    """Return the MiB of memory that a process holds."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def row(
    places: Sequence[Path], server: int, shape: tuple[int, int], seconds: float, repetitions: int
) -> dict[str, Any]:
    """Measure clients of one shape (processes, threads in each), embedded and served by turns."""
    embedded, served = (Clients(folder, *shape) for folder in places)
    rates: list[tuple[Rate, Rate]] = []
    try:
        embedded.rate(seconds / 2, None), served.rate(seconds / 2, server)  # warm up
        rates += [
            (embedded.rate(seconds, None), served.rate(seconds, server)) for _ in range(repetitions)
        ]
    finally:
        embedded.close()
        served.close()
    processes, threads = shape
    return {
        "clients": f"{processes} processes" if threads == 1 else f"{threads} threads",
        "embedded_calls_s": round(statistics.median(one.calls for one, _other in rates)),
        "served_calls_s": round(statistics.median(other.calls for _one, other in rates)),
        "ratio": round(statistics.median(other.calls / one.calls for one, other in rates), 2),
        "embedded_cpu_us": round(statistics.median(one.cpu for one, _other in rates)),
        "served_cpu_us": round(statistics.median(other.cpu for _one, other in rates)),
        "server_mib": round(memory_of(server)),
    }


def run(clients: Sequence[int], seconds: float, repetitions: int) -> dict[str, Any]:
    """Measure each number of clients, as processes and as threads."""
    base = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))
    os.environ["AGENTGUARD_PASSPHRASE"] = os.urandom(16).hex()
    shapes = [shape for number in clients for shape in {(number, 1), (1, number)}]
    try:
        probe, places = fdatasync_p50(base), (base / "e", base / "s")
        for folder, is_served in zip(places, (False, True), strict=True):
            found(folder, is_served=is_served)
        with serving(places[1]) as server, Progress(transient=True) as progress:
            task = progress.add_task("clients", total=len(shapes))
            results = []
            for shape in sorted(shapes):
                results.append(row(places, server, shape, seconds, repetitions))
                progress.advance(task)
    finally:
        shutil.rmtree(base)
    return figures(probe, results)


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"durable calls, embedded and served ({figures['machine']})")
    headings = ("clients", "embedded /s", "served /s", "ratio", "CPU µs", "served CPU µs", "MiB")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "clients" else "right")
    for one in figures["results"]:
        table.add_row(*(str(value) for value in one.values()))
    show_table(table, figures)


def main() -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report(run(options.clients, options.seconds, options.repetitions), show, options.json)


if __name__ == "__main__":
    main()
