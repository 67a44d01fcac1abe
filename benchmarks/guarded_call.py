"""What a guarded call costs, beside the floor that no such call can go below, in one run.

    uv run python benchmarks/guarded_call.py [--repetitions N] [--calls N] [--json FILE]

Each measured arm has its floor arm beside it, run alternately, with the garbage collector off;
the ratio is the median of the ratios of the repetitions. The floor (``floor.py``) does, with the
same libraries and on the same bytes, only what the guarantees require; in the durable arm it has
one SQLite transaction with its fsync and one checkpoint signature a call. CPU time is reported for
the arms in memory, wall time for the durable one. Beside them stand the load average and the time
of a bare fdatasync: past 1 ms the durable figures are void.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import floor
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agentguard import Decision, Guard
from agentguard.domain import config, domain
from agentguard.policy.document import DEFAULT_QUERY

POLICY = """package agent.authz

default allow = false

allow if {
    input.agent.type == "code-agent"
    input.action == "open_pr"
    input.repo.visibility == "internal"
}

allow if {
    input.agent.type == "code-agent"
    input.action == "trigger_ci"
    input.branch != "main"
}

deny_reason := "direct merges to main require human approval" if {
    input.action == "merge_pr"
    input.branch == "main"
}
"""
TABLES: Mapping[str, Any] = {
    "trust_domain": "bench.example",
    "agents": {
        "code-reviewer": {"type": "code-agent", "authority": "own", "max_scope": ["pr:write"]}
    },
}
VOID_OVER = 1000.0
"""Microseconds of a bare fdatasync, past which a durable figure tells of the disk alone."""
ARGUMENTS = {"repo": "payments-api", "branch": "agent/fix-null-check"}


Commit = Callable[[list[bytes]], None]
"""Appends the two entries of a call."""


@dataclass(frozen=True)
class Arm:
    """One thing that is measured: a call, and the clock that counts for it."""

    name: str
    floor: Callable[[], object]
    guarded: Callable[[], object]
    clock: Callable[[], float]
    unit: str


def decide(document: Mapping[str, Any]) -> Decision:
    """The same policy as a Python function."""
    if document["agent"]["type"] == "code-agent" and document["repo"]["visibility"] == "internal":
        return Decision.allow()
    return Decision.deny("not allowed")


def guarded(guard: Guard) -> Callable[[], object]:
    """Return one guarded call of a tool that does nothing."""

    @guard.tool(
        resource="repo:{repo}",
        requires=["pr:write"],
        attributes={"branch": "branch"},
        facts=lambda _arguments: {"repo": {"visibility": "internal"}},
        gives=["repo"],
    )
    def open_pr(repo: str, branch: str) -> str:
        """Open a pull request."""
        return f"{repo} {branch}"

    agent = guard.new_agent("code-reviewer")
    return lambda: agent.call(open_pr, **ARGUMENTS)


def samples(guard: Guard) -> tuple[bytes, list[bytes]]:
    """Make a call and return its policy input and the two entries that it wrote."""
    guarded(guard)()
    *_others, call, outcome = guard.reader().stored()
    (document,) = (a.data for a in call.attachments if a.role == "input")
    return document, [call.body, outcome.body]


def rego_floor(document: bytes, bodies: list[bytes], append: Commit) -> Callable[[], object]:
    """Return the floor of one call whose policy is in Rego (``floor.call``)."""
    return floor.call(floor.rego(POLICY, DEFAULT_QUERY), ARGUMENTS, document, bodies, append)


@contextmanager
def bare_database(folder: Path) -> Iterator[Commit]:
    """Yield a commit of two rows and a signed checkpoint, as the durable floor needs it."""
    connection = sqlite3.connect(folder / "floor.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (idx INTEGER PRIMARY KEY, body BLOB)")
    signer = Ed25519PrivateKey.from_private_bytes(os.urandom(32))

    def commit(entries: list[bytes]) -> None:
        note = signer.sign(entries[0])
        connection.execute("BEGIN IMMEDIATE")
        rows = [(entry,) for entry in (*entries, note)]
        connection.executemany("INSERT INTO entries (body) VALUES (?)", rows)
        connection.execute("COMMIT")

    yield commit
    connection.close()


def durable(folder: Path) -> Guard:
    """Found a trust domain in ``folder`` and open it."""
    (folder / "authz.rego").write_text(POLICY)
    (folder / "authz.rego").chmod(0o600)
    path = folder / config.FILE
    path.write_text(
        'trust_domain = "bench.example"\nanchor = "anchor"\n[policy]\npath = "authz.rego"\n'
        '[agents.code-reviewer]\ntype = "code-agent"\nauthority = "own"\nmax_scope = ["pr:write"]\n'
    )
    path.chmod(0o600)
    passphrase = os.urandom(16).hex().encode()
    domain.found(config.load(path), passphrase, now=datetime.now(UTC))
    return Guard.open(path, passphrase=passphrase)


def arms(stack: ExitStack, folder: Path) -> list[Arm]:
    """Set up each arm with its floor."""
    (folder / "memory.rego").write_text(POLICY)
    in_memory = stack.enter_context(Guard.ephemeral(folder / "memory.rego", config=TABLES))
    in_python = stack.enter_context(Guard.ephemeral(decide, config=TABLES))
    on_disk = stack.enter_context(durable(folder))
    commit = stack.enter_context(bare_database(folder))
    document, bodies = samples(in_memory)

    kept: list[list[bytes]] = []  # a log in memory keeps its entries, and so does its floor

    cpu, wall = time.process_time, time.perf_counter
    function = floor.function(decide)
    return [
        Arm(
            "in memory, Rego",
            rego_floor(document, bodies, kept.append),
            guarded(in_memory),
            cpu,
            "CPU",
        ),
        Arm(
            "in memory, Python policy",
            floor.call(function, ARGUMENTS, document, bodies, kept.append),
            guarded(in_python),
            cpu,
            "CPU",
        ),
        Arm("durable, Rego", rego_floor(document, bodies, commit), guarded(on_disk), wall, "wall"),
    ]


def measure(call: Callable[[], object], clock: Callable[[], float], calls: int) -> float:
    """Return the microseconds of one call."""
    started = clock()
    for _ in range(calls):
        call()
    return (clock() - started) / calls * 1e6


def fdatasync_p50(folder: Path) -> float:
    """Return the median microseconds of appending 4 KiB and calling fdatasync."""
    file = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        os.write(file, b"x" * 4096)
        os.fdatasync(file)
        times.append((time.perf_counter() - started) * 1e6)
    os.close(file)
    return statistics.median(times)


def run(repetitions: int, calls: int) -> dict[str, Any]:
    """Measure every arm and return the figures."""
    results = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        probe = fdatasync_p50(folder)
        for arm in arms(stack, folder):
            floors, costs = [], []
            measure(arm.guarded, arm.clock, calls), measure(arm.floor, arm.clock, calls)  # warm up
            gc.collect()
            gc.disable()
            for _ in track(range(repetitions), description=f"{arm.name:26}", transient=True):
                floors.append(measure(arm.floor, arm.clock, calls))
                costs.append(measure(arm.guarded, arm.clock, calls))
            gc.enable()
            ratios = [cost / base for cost, base in zip(costs, floors, strict=True)]
            results.append(
                {
                    "arm": arm.name,
                    "clock": arm.unit,
                    "floor_us": round(statistics.median(floors), 1),
                    "guarded_us": round(statistics.median(costs), 1),
                    "ratio": round(statistics.median(ratios), 2),
                }
            )
    return figures(probe, results)


def figures(probe: float, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the results with the machine, and how quiet it was; ``probe`` is ``fdatasync_p50``."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "fdatasync_p50_us": round(probe, 1),
        "durable_void": probe > VOID_OVER,
        "results": results,
    }


def show_table(table: Table, figures: Mapping[str, Any]) -> None:
    """Print a table of the figures, and how quiet the machine was."""
    console = Console()
    console.print(table)
    void = " (over 1 ms: the durable figures are void)" if figures["durable_void"] else ""
    console.print(
        f"load average {figures['load_average']:.2f}, "
        f"bare fdatasync p50 {figures['fdatasync_p50_us']} µs{void}"
    )


def report(
    figures: dict[str, Any], show: Callable[[dict[str, Any]], None], file: Path | None
) -> None:
    """Print the figures, and write the JSON file if one is named."""
    show(figures)
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"guarded call ({figures['machine']})")
    for heading in ("arm", "clock", "floor µs", "guarded µs", "ratio"):
        table.add_column(heading, justify="left" if heading in ("arm", "clock") else "right")
    for row in figures["results"]:
        table.add_row(*(str(value) for value in row.values()))
    show_table(table, figures)


def main() -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report(run(options.repetitions, options.calls), show, options.json)


if __name__ == "__main__":
    main()
