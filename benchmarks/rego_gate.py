"""What the load of a Rego policy costs: the gate's checks, and its trial in a child process.

    uv run python benchmarks/rego_gate.py [--repetitions N] [--rules N ...] [--json FILE]

Each load is the first one of a fresh process, which has imported agentguard and the engine. CPU
time is that of the process (the gate's checks) and that of the gate's child (the trial). The trial
contains the native engine's steps, which are also measured alone, after the load: to parse the
modules, to write the syntax tree, and the first evaluation, which compiles the rules. The second
load in a process finds the policy checked. Each figure is the least of the repetitions, because
other work on the machine only adds to it. The policies take turns.
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
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import regorus  # type: ignore[import-untyped]  # the binding has no annotations
from measuring import CONSOLE, WIDTH, tracked
from rich.console import Console
from rich.table import Table

from agentguard.policy.rego import RegoEngine

SIZES = (10, 100, 2_000)
HEAD = "package agent.authz\n\ndefault allow := false\n"
QUERY = "data.agent.authz"
INPUT = '{"action": "", "args": {}, "agent": {}}'
FILES = 10


def one_name(rules: int) -> dict[str, str]:
    """Make short rules that share two names: a complete rule, and a set."""
    lines = [
        f'allow if {{ input.action == "tool_{n}"; input.branch != "b{n}" }}'
        if n % 2
        else f'deny_reasons contains "no {n}" if {{ input.action == "tool_{n}"; input.x == "{n}" }}'
        for n in range(rules)
    ]
    return {"policy.rego": HEAD + "\n".join(lines)}


def helpers(rules: int) -> dict[str, str]:
    """Make helper rules and functions of different names, each with one rule that reads it."""
    lines = []
    for n in range(rules // 4 + 1):
        lines += [
            f'fits_{n} if {{ input.action == "tool_{n}"; input.branch == "b{n}" }}',
            f'deny_reasons contains "no {n}" if {{ input.action == "tool_{n}"; not fits_{n} }}',
            f"small_{n}(x) if {{ is_number(x); x < {n} }}",
            f'allow if {{ input.action == "tool_{n}"; small_{n}(input.args.cents) }}',
        ]
    return {"policy.rego": HEAD + "\n".join(lines[:rules])}


def long_bodies(rules: int) -> dict[str, str]:
    """Make rules of nine lines, with comprehensions, a function's call and ``every``."""
    lines = [
        f"""deny_reasons contains reason if {{
    input.action == "tool_{n}"; is_array(input.args.items); is_number(input.args.limit)
    names := {{item.name | some item in input.args.items; item.kind != "k{n}"}}
    prices := [item.price | some item in input.args.items; is_number(item.price)]
    sum(prices) > input.args.limit
    every name in names {{ startswith(name, "n{n}") }}
    count(names) > {n}
    reason := sprintf("%d of %v in tool_{n}", [sum(prices), names])
}}"""
        for n in range(rules)
    ]
    return {"policy.rego": HEAD + "\n".join(lines)}


def several_files(rules: int) -> dict[str, str]:
    """Make a library of up to ten packages, whose sets the policy's own rules read."""
    files, own = {}, []
    packages = min(rules // 5, FILES)
    for team in range(packages):
        lines = [
            f'deny contains "{n}" if {{ input.action == "tool_{n}"; input.branch == "b{team}" }}'
            for n in range(rules // packages - 1)
        ]
        files[f"team_{team}.rego"] = f"package lib.team_{team}\n" + "\n".join(lines)
        own.append(f"deny_reasons contains x if some x in data.lib.team_{team}.deny")
    return {**files, "policy.rego": HEAD + "\n".join(own)}


POLICIES: dict[str, Callable[[int], dict[str, str]]] = {
    "short rules of two names": one_name,
    "helpers of many names": helpers,
    "long bodies": long_bodies,
    "several files": several_files,
}
COLUMNS = {
    "first load, wall": "wall_ms",
    "CPU": "cpu_ms",
    "checks": "checks_ms",
    "trial": "trial_ms",
    "parse": "parse_ms",
    "tree": "tree_ms",
    "compile": "compile_ms",
    "second load": "second_ms",
}


def load(folder: Path) -> dict[str, float]:
    """Load the policy twice, and then run the engine's steps: times in milliseconds."""

    def trial() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    started, spent, before = time.perf_counter(), time.process_time(), trial()
    RegoEngine.load(folder, query=QUERY, check_timeout=120)
    wall = time.perf_counter() - started
    times = {"wall_ms": wall, "checks_ms": time.process_time() - spent}
    times["trial_ms"] = trial() - before
    times["cpu_ms"] = times["checks_ms"] + times["trial_ms"]

    def timed(name: str, step: Callable[[], object]) -> None:
        spent = time.process_time()
        step()
        times[name] = time.process_time() - spent

    timed("second_ms", lambda: RegoEngine.load(folder, query=QUERY))
    engine = regorus.Engine()
    texts = {file.name: file.read_text() for file in folder.iterdir()}
    timed("parse_ms", lambda: [engine.add_policy(*item) for item in texts.items()])
    timed("tree_ms", engine.get_ast_as_json)
    engine.set_input_json(INPUT)
    timed("compile_ms", lambda: engine.eval_query_as_json(QUERY))
    return {name: seconds * 1e3 for name, seconds in times.items()}


def apart(folder: Path) -> dict[str, float]:
    """Run ``load`` in a fresh process."""
    command = [sys.executable, __file__, "--load", str(folder)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603  ours
    return json.loads(output)  # type: ignore[no-any-return]


def least(folders: Mapping[tuple[str, int], Path], repetitions: int) -> list[dict[str, Any]]:
    """Load each policy so many times, and return the least of each time."""
    times: dict[tuple[str, int], list[dict[str, float]]] = {policy: [] for policy in folders}
    for _ in tracked(range(repetitions), "loading policies"):
        for policy, folder in folders.items():
            times[policy].append(apart(folder))
    rows = []
    for (name, rules), loads in times.items():
        size = sum(file.stat().st_size for file in folders[name, rules].iterdir())
        row: dict[str, Any] = {"policy": name, "rules": rules, "kb": round(size / 1e3, 1)}
        rows.append(row | {key: round(min(load[key] for load in loads), 1) for key in loads[0]})
    return rows


def run(sizes: list[int], repetitions: int) -> dict[str, Any]:
    """Write the policies into a temporary folder, and measure their loads."""
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for name, policy in POLICIES.items():
            for rules in sizes:
                folder = folders[name, rules] = Path(place, f"{policy.__name__}_{rules}")
                folder.mkdir()
                for file, text in policy(rules).items():
                    (folder / file).write_text(text + "\n")
        before = os.getloadavg()[0]
        rows = least(folders, repetitions)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, engine {version('gordon-to-regorus')}",
        "load_average": [before, os.getloadavg()[0]],
        "results": rows,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"load of a Rego policy, in ms ({figures['machine']})")
    for heading in ("policy", "rules", "kB", *COLUMNS):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for row in figures["results"]:
        times = (f"{row[name]:,.1f}" for name in COLUMNS.values())
        table.add_row(row["policy"], f"{row['rules']:,}", f"{row['kb']:,.1f}", *times)
    console = CONSOLE if CONSOLE.is_terminal else Console(width=WIDTH)
    console.print(table)
    loads = " and ".join(f"{load:.1f}" for load in figures["load_average"])
    console.print(f"before and after: load average {loads}; all but the wall time is CPU time")


def main() -> None:
    """Measure, print, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rules", type=int, nargs="+", default=[*SIZES])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        sys.stdout.write(json.dumps(load(options.load)))
        return
    figures = run(options.rules, options.repetitions)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
