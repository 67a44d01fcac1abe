"""Many processes and threads write one log: everything is there, once.

Real processes with threads each: a few calls by default and many with ``AGENTGUARD_ROUNDS=full``.
What a fork inherits stands in ``test_forks.py``.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from preloaded import Preloaded, Talk

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.domain import keystore
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.signing.canonical import loads_object
from agentguard.store.reader import StoredLog

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
CALLS = 30 if FULL else 4

WRITER = """
    import json, os, sys, threading
    from pathlib import Path
    from agentguard import Decision, Guard
    from agentguard.guard.embedded import Embedded
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine

    folder, name, threads, calls = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"reader": {"authority": "own"}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    print("loaded", flush=True)
    sys.stdin.readline()  # so that all open at once

    guard = Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))
    agent = guard.new_agent("reader")
    print(json.dumps(agent.id), flush=True)
    sys.stdin.readline()  # so that all call at once

    @guard.tool
    def note(text: str) -> str:
        return text

    returned = []

    def work(thread):
        for number in range(calls):
            returned.append(agent.call(note, text=f"{name}-{thread}-{number}"))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps(returned), flush=True)
    sys.stdin.readline()  # so that all are open to the end
    guard.close()
"""


@dataclass
class Writer:
    """One process, which goes on at each ``go``."""

    process: Talk

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def says(self) -> Any:
        line = self.process.stdout.readline()
        assert line, f"the process ended: {self.process.wait()}"
        return line.strip() if line == "loaded\n" else json.loads(line)


@contextmanager
def writers(
    programs: Preloaded, place, names: list[str], threads: int, calls: int
) -> Iterator[list[Writer]]:
    """Start processes on one state, and see that each ends well."""
    program = textwrap.dedent(WRITER)
    started: list[Writer] = []
    try:
        for name in names:
            arguments = [str(place.config.base), name, str(threads), str(calls)]
            words = ("-W", "error", "-c", program, *arguments)
            started.append(Writer(programs.talk(*words, cwd=place.config.base)))
        yield started
        for writer in started:
            assert (writer.process.communicate()[1], writer.process.returncode) == ("", 0)
    finally:
        for writer in started:
            writer.process.kill()
            writer.process.wait()


def all_say(started: list[Writer]) -> list[Any]:
    return [writer.says() for writer in started]


def all_go(started: list[Writer]) -> None:
    for writer in started:
        writer.go()


def verified(place) -> Report:
    """Verify the log, where some processes may be at work still, or were killed."""
    reader = StoredLog.of(place.config.state)
    try:
        trust = keystore.load_trust(place.config.state)
        report = examine(reader, trust, anchor=place.config.anchor)
    finally:
        reader.close()
    assert report.problems == ()
    assert report.anchored
    return report


def on_record(place) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """Count the calls by agent and argument, and the outcomes by status."""
    calls: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[str] = Counter()
    reader = StoredLog.of(place.config.state)
    try:
        for stored in reader.stored():
            parsed = parse_entry(stored.body)
            if isinstance(parsed, CallEntry):
                kept = {a.role: loads_object(a.data) for a in stored.attachments}
                calls[parsed.agent, str(kept["arguments"]["text"])] += 1
            elif isinstance(parsed, OutcomeEntry):
                outcomes[parsed.status] += 1
    finally:
        reader.close()
    return calls, outcomes


@pytest.mark.parametrize(
    ("processes", "threads"),
    [
        (3, 4),
        pytest.param(8, 8, marks=pytest.mark.slow("eight processes: as many as a server has")),
    ],
)
def test_processes_of_many_threads(programs, place, processes, threads):
    names = [f"p{number}" for number in range(processes)]
    with writers(programs, place, names, threads, CALLS) as started:
        assert all_say(started) == ["loaded"] * processes
        all_go(started)
        agents = all_say(started)
        all_go(started)
        returned = all_say(started)
        verified(place)  # while all of them are open still
        all_go(started)
    report = verified(place)
    assert list(report.in_doubt) == []

    calls, outcomes = on_record(place)
    expected = Counter(
        (agent, f"{name}-{thread}-{number}")
        for name, agent in zip(names, agents, strict=True)
        for thread in range(threads)
        for number in range(CALLS)
    )
    assert calls == expected
    assert outcomes == {"ok": processes * threads * CALLS}
    assert [sorted(texts) for texts in returned] == [
        sorted(f"{name}-{thread}-{number}" for thread in range(threads) for number in range(CALLS))
        for name in names
    ]


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_process_that_ends_leaves_the_log_to_the_others(programs, place, end):
    for generation in range(2):
        names = [f"g{generation}p{number}" for number in range(2)]
        with writers(programs, place, names, 1, 2) as started:
            for _turn in range(2):
                all_say(started)
                all_go(started)
            all_say(started)
            if end == "kill":
                for writer in started:
                    writer.process.kill()
                    writer.process.communicate()
                started.clear()
            else:
                all_go(started)
    report = verified(place)
    assert end == "kill" or list(report.in_doubt) == []
    assert on_record(place)[0].total() == 2 * 2 * 2


def test_guards_of_one_process_share_nothing_but_the_state(place, ran):
    """The twin in one process."""
    guards = [place.open() for _ in range(4)]
    for number, guard in enumerate(guards):
        guard.new_agent("reader").call(guard.tool(ran.append, name="note"), number)
    guards[1].close()
    again = place.open()
    again.new_agent("reader").call(again.tool(ran.append, name="note"), 4)
    for guard in [guards[0], *guards[2:], again]:
        guard.close()
    assert ran == [0, 1, 2, 3, 4]
    assert verified(place).in_doubt == ()
