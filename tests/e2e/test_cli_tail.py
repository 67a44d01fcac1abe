"""``agentguard audit tail``: it sees what real processes write, while they write it."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest

# Opens a guard, and makes a call of the tool that each line names; says when it has returned. A
# call of ``slow`` returns as soon as there is a file "go".
WRITER = r"""
import os, sys, time
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    agent = guard.new_agent("assistant")
    print("open", flush=True)
    for line in sys.stdin:
        name, path = line.split()
        @guard.tool(name=name, requires=["files:read"])
        def read(path: str) -> str:
            while path == "slow" and not os.path.exists("go"):
                time.sleep(0.01)
            return path
        try:
            agent.call(read, path)
        except Denied:
            pass
        print("over", flush=True)
"""
PATIENCE = 120.0

# A job in the background inherits that Ctrl-C is ignored; a person's terminal does not.
START = """
import signal
from agentguard.cli.commands import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


class Tail:
    """A running ``audit tail``, and the lines that it has printed."""

    def __init__(self, process):
        self.process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self):
        return self._lines.get(timeout=PATIENCE)

    def row(self):
        return json.loads(self.line())

    def until(self, wanted):
        """Return the rows up to the first one that is wanted."""
        rows = [self.row()]
        while not wanted(rows[-1]):
            rows.append(self.row())
        return rows

    def rest(self):
        """Return the lines that nobody has taken, after the end."""
        self._reader.join(PATIENCE)
        return [self._lines.get() for _line in range(self._lines.qsize())]

    def end(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        return code, self.process.stderr.read()


@pytest.fixture
def founded(begun):
    return begun.allow_unlisted()


@contextmanager
def tailing(project, *args):
    command = [sys.executable, "-c", START, "audit", "tail", *args]
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Tail(process)
        finally:
            process.kill()


@contextmanager
def writing(project):
    process = project.programs.talk("-c", WRITER, cwd=project.folder, env=project.environment)
    assert process.stdout.readline() == "open\n"
    try:
        yield process
    finally:
        process.communicate()


def make(process, tool, path="a.txt"):
    """Have a call made, and wait until the call is over."""
    begin(process, tool, path)
    assert process.stdout.readline() == "over\n"


def begin(process, tool, path):
    process.stdin.write(f"{tool} {path}\n")
    process.stdin.flush()


def is_call(row):
    return row["kind"] == "call"


def is_identity(row):
    return row["kind"] == "identity"


def is_outcome(row):
    return row["kind"] == "outcome"


def test_what_is_written_is_seen_at_once_whoever_writes(founded):
    """One writer, another beside it, and one more after both."""
    with tailing(founded, "--json", "-n", "1") as tail:
        tail.row()  # it follows the log from here on
        with writing(founded) as first:
            tail.until(is_identity)
            for number in range(2):
                make(first, "read_file", f"{number}.txt")
                rows = tail.until(is_outcome)  # nothing else is written before it is seen
                assert [row["kind"] for row in rows] == ["call", "outcome"]
                assert rows[0]["invocation_id"] == rows[1]["invocation_id"]
            with writing(founded) as second:
                tail.until(is_identity)
                make(second, "get_file")
                assert [row["tool"] for row in tail.until(is_outcome)] == ["get_file"] * 2
                make(first, "list_files")
                assert [row["tool"] for row in tail.until(is_outcome)] == ["list_files"] * 2
        with writing(founded) as third:
            make(third, "read_file", "again.txt")
            rows = tail.until(is_outcome)
            assert [row["kind"] for row in rows[-2:]] == ["call", "outcome"]
        assert tail.end() == (0, "")


def test_a_call_is_seen_before_it_is_over_and_then_its_outcome(founded):
    with writing(founded) as writer, tailing(founded, "--json", "-n", "1") as tail:
        assert tail.row()["kind"] == "identity"
        begin(writer, "read_file", "slow")
        call = tail.row()
        assert (call["kind"], call["outcome"]) == ("call", "in_doubt")
        (founded.folder / "go").touch()
        ended = tail.row()
        assert (ended["kind"], ended["outcome"]) == ("outcome", "ok")
        assert ended["invocation_id"] == call["invocation_id"]
        assert tail.end() == (0, "")


def test_filters_hold_for_what_comes_too(founded):
    with writing(founded) as writer, tailing(founded, "--json", "--tool", "get_file") as tail:
        make(writer, "read_file")
        make(writer, "get_file", ".hidden")
        make(writer, "get_file")
        rows = tail.until(lambda row: row["outcome"] == "ok")
        calls = [row for row in rows if is_call(row)]
        assert [(row["tool"], row["decision"]) for row in calls] == [
            ("get_file", "deny"),
            ("get_file", "allow"),
        ]
        assert tail.end() == (0, "")


def test_the_table_has_a_call_once_and_its_late_outcome(founded):
    with writing(founded) as writer, tailing(founded) as tail:
        assert tail.line().split()[:3] == ["index", "at", "kind"]
        tail.line()  # the date
        assert tail.line().split()[2] == "identity"
        begin(writer, "read_file", "slow")
        assert tail.line().split()[2:5] == ["call", "allow", "in_doubt"]
        (founded.folder / "go").touch()
        assert tail.line().split()[2:4] == ["outcome", "ok"]
        assert writer.stdout.readline() == "over\n"
        make(writer, "read_file", ".hidden")
        assert tail.line().split()[2:4] == ["call", "deny"]
        tail.line()  # the reason
        assert tail.end() == (0, "")
        assert tail.rest() == []


def test_without_following_it_ends(busy):
    every = busy.run("audit", "list", "--json").stdout.splitlines()
    shown = busy.run("audit", "tail", "--json", "--no-follow")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == every[-10:]
    shown = busy.run("audit", "tail", "--json", "--no-follow", "-n", "2", "--decision", "deny")
    assert [json.loads(line)["decision"] for line in shown.stdout.splitlines()] == ["deny", "deny"]
    nothing = busy.run("audit", "tail", "--json", "--no-follow", "-n", "0")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_a_log_that_is_rolled_back_under_it_is_a_warning(founded):
    with writing(founded) as writer:
        make(writer, "read_file")
    with tailing(founded, "--json", "-n", "1") as tail:
        assert is_outcome(tail.row())
        with closing(sqlite3.connect(founded.state / "log.sqlite")) as connection, connection:
            connection.execute("DELETE FROM entry WHERE idx > 2")
        warned = tail.process.stderr.readline()
        assert tail.end() == (0, "")
    assert warned == (
        "warn: the log has fewer entries than before, and was rolled back: "
        "run agentguard audit verify\n"
    )


def test_another_file_in_the_place_of_the_log_ends_it(founded, tmp_path):
    log = founded.state / "log.sqlite"
    shutil.copy(log, tmp_path / "old")
    with tailing(founded, "--json", "-n", "1") as tail:
        tail.row()
        (tmp_path / "old").replace(log)
        assert tail.process.wait(PATIENCE) == 2
        assert tail.process.stderr.read().startswith("error [storage.corrupt]: ")


def test_a_damaged_entry_does_not_stop_it(founded):
    with writing(founded) as writer:  # opened before the damage: no guard opens on a damaged log
        make(writer, "read_file")
        with closing(sqlite3.connect(founded.state / "log.sqlite")) as connection, connection:
            damage = connection.execute("UPDATE entry SET body = x'00' WHERE idx = 5")
            assert damage.rowcount == 1
        with tailing(founded, "--json", "-n", "100") as tail:
            before = {row["index"]: row["kind"] for row in tail.until(is_outcome)}
            assert before[5] == "damaged"
            make(writer, "read_file")
            shown = [row["kind"] for row in tail.until(is_outcome)]
            assert shown == ["call", "outcome"]
            assert tail.end() == (0, "")
