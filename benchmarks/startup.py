"""What a program pays at its start, beside one that imports asyncio and Ed25519 alone.

    uv run python benchmarks/startup.py [--repetitions N] [--json FILE]

Each program is a process of its own, and what is measured is that process's CPU time, user and
system, with the interpreter's own. The programs take turns; the first round, which compiles, is not
counted. The figure is the least of the repetitions: other work on the machine only adds to it. The
ratio is to the floor's least. Which modules a program loads is held by
``tests/unit/test_startup.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import CONSOLE, tracked
from rich.table import Table

FLOOR = "asyncio and Ed25519"
CALL = """
from agentguard import Decision, Guard

guard = Guard.ephemeral(lambda _asked: Decision.allow())
agent = guard.new_agent("reader")

@guard.tool
def read() -> None: ...

agent.call(read)
"""
CLI = ("-m", "agentguard.cli")
PROGRAMS = {
    "the interpreter alone": ("-c", "pass"),
    FLOOR: ("-c", "import asyncio; from cryptography.hazmat.primitives.asymmetric import ed25519"),
    "import agentguard": ("-c", "import agentguard"),
    "from agentguard import Guard": ("-c", "from agentguard import Guard"),
    "a guarded call in memory": ("-c", CALL),
    "agentguard --help": (*CLI, "--help"),
    "agentguard audit --help": (*CLI, "audit", "--help"),
    "agentguard audit verify --help": (*CLI, "audit", "verify", "--help"),
}


def cost(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    """Return the CPU time of a program, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(  # noqa: S603  the programs above
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3


def run(repetitions: int) -> dict[str, Any]:
    """Measure each program so many times."""
    least: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as compiled:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "PYTHONPYCACHEPREFIX": compiled}
        for name, arguments in PROGRAMS.items():
            cost(arguments, environment)  # compile
            least[name] = float("inf")
        for _ in tracked(range(repetitions), "starting programs"):
            for name, arguments in PROGRAMS.items():
                least[name] = min(least[name], cost(arguments, environment))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "results": [
            {"what": name, "ms": round(ms, 1), "ratio": round(ms / least[FLOOR], 2)}
            for name, ms in least.items()
        ],
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"start-up ({figures['machine']}, load {figures['load_average']:.1f})")
    for heading in ("what", "CPU ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    for row in figures["results"]:
        table.add_row(row["what"], f"{row['ms']:.1f}", f"{row['ratio']:.2f}")
    CONSOLE.print(table)


def main() -> None:
    """Measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = run(options.repetitions)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
