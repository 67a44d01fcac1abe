"""SIGKILL at random moments, forks, and the end of the process.

Nothing takes effect without a durable authorization; what was acknowledged is not lost; what had
begun is listed as in doubt; the state opens again. A few rounds by default,
``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from agentguard.canonical import loads_object

ROUNDS = 64 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 4

OPEN = """
    import asyncio, os, signal, sys, threading
    from pathlib import Path
    from agentguard import Decision, Denied, Guard, config, domain
    from agentguard.engines.function import FunctionEngine

    folder = Path(sys.argv[1])
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"reader": {"authority": "own"}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    guard = Guard(settings, FunctionEngine(lambda _: Decision.allow()), home)
    agent = guard.new_agent("reader")
"""


def program(text):
    return textwrap.dedent(OPEN) + textwrap.dedent(text)


def run(place, text, *, check=True):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program(text), str(place.config.base)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


EFFECTS = """
    effects = os.open(folder / "effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    @guard.tool
    def effect(name: str) -> str:
        os.write(effects, f"{name}\\n".encode())  # seen by all, even after a SIGKILL
        return name

    def work(thread):
        for number in range(1_000_000):
            name = f"{sys.argv[2]}-{thread}-{number}"
            agent.call(effect, name=name)
            os.write(1, f"{name}\\n".encode())  # acknowledged

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def names_on_record(place):
    """The argument of each durable authorization, read beside the log."""
    connection = sqlite3.connect(place.config.state / "log.sqlite")
    rows = connection.execute("SELECT data FROM attachments WHERE role = 'arguments'").fetchall()
    connection.close()
    return {loads_object(row[0])["name"] for row in rows}


@pytest.mark.parametrize("_round", range(ROUNDS // 2))
def test_a_kill_at_any_moment_leaves_no_effect_without_its_authorization(place, _round):
    for attempt in range(2):  # the second on the state that the first has left
        effects, acknowledged = killed_while_it_works(place, str(attempt))
        report = place.examine()
        assert report.problems == ()
        assert report.anchored
        on_record = names_on_record(place)
        assert effects <= on_record, "an effect without a durable authorization"
        assert acknowledged <= on_record, "an acknowledged call is lost"
        assert acknowledged <= effects
        seen = place.seen()
        assert len(report.in_doubt) == len(seen.authorizations) - len(seen.outcomes)

        # the state opens again, and goes on where it was
        guard = place.open()
        assert guard.new_agent("reader").call(guard.tool(echo), name="again") == "again"
        guard.close()
        assert place.examine().problems == ()
        assert place.examine().in_doubt == report.in_doubt


def killed_while_it_works(place, names):
    """Kill a process at random; return the effects that it had and the calls that it knew of."""
    path = place.config.base / "effects"
    path.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-c", program(EFFECTS), str(place.config.base), names],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: path.exists() and path.stat().st_size > 0)
        time.sleep(random.random() * 0.15)  # noqa: S311  a moment, no secret
    finally:
        child.send_signal(signal.SIGKILL)
        output, _nothing = child.communicate(timeout=10)
    effects = path.read_text().split("\n")[:-1]
    assert len(effects) == len(set(effects)), "an effect happened twice"
    return set(effects), set(output.decode().split("\n")[:-1])


def echo(name: str) -> str:
    return name


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def test_a_kill_inside_a_tool_leaves_its_call_in_doubt(place):
    result = run(
        place,
        """
        @guard.tool
        def die():
            os.kill(os.getpid(), signal.SIGKILL)

        agent.call(die)
        """,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    report = place.examine()
    assert report.problems == ()
    assert len(report.in_doubt) == 1
    assert place.seen().codes == [("allow", "")]
    place.open().close()
    assert len(place.examine().in_doubt) == 1


# --- the end of a process -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        "guard.close()",
        "",  # atexit flushes
        "sys.exit(0)",
        "signal.raise_signal(signal.SIGINT)",
        "import gc; del guard, agent, note, home; gc.collect()",
    ],
)
def test_an_outcome_survives_the_end_of_the_process(place, end):
    run(
        place,
        f"""
        @guard.tool
        def note():
            return "done"

        agent.call(note)
        {end}
        """,
        check=not end.startswith("signal"),
    )
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == []
    assert place.seen().statuses == ["ok"]


def test_leaving_the_context_flushes(place, ran):
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(ran.append), 1)
    assert place.examine().in_doubt == []


async def test_leaving_the_async_context_flushes(place, ran):
    async with place.open() as guard:
        await guard.new_agent("reader").acall(guard.tool(ran.append), 1)
    assert place.examine().in_doubt == []


def test_an_outcome_is_durable_soon_without_any_other_call(place, ran):
    guard = place.open()
    guard.new_agent("reader").call(guard.tool(ran.append), 1)
    begun = time.monotonic()
    wait_for(lambda: place.seen().statuses == ["ok"], seconds=5)
    took = time.monotonic() - begun
    assert took < 1.0, "the flusher promises 50 ms; a loaded machine may be slower"
    guard.close()


# --- forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_after_a_fork_the_child_is_denied_and_the_parent_goes_on(place, end):
    result = run(
        place,
        f"""
        ran = []
        note = guard.tool(ran.append)
        agent.call(note, 1)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            for _ in range(2):
                try:
                    agent.call(note, 2)
                except Denied as denied:
                    print(denied.code, ran, flush=True)
            guard.close()
            {end}
        assert os.waitpid(child, 0)[1] == 0
        agent.call(note, 3)
        guard.close()
        print(ran)
        """,
    )
    assert result.stdout.split("\n")[:-1] == ["storage.closed [1]"] * 2 + ["[1, 3]"]
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == []
    assert place.seen().statuses == ["ok", "ok"]


def test_after_a_fork_async_calls_are_denied_and_do_not_hang(place):
    result = run(
        place,
        """
        @guard.tool
        async def note():
            return os.getpid()

        asyncio.run(agent.acall(note))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                asyncio.run(agent.acall(note))
            except Denied as denied:
                print(denied.code, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        asyncio.run(agent.acall(note))
        """,
    )
    assert result.stdout == "storage.closed\n"
    assert place.examine().ok
    assert place.seen().statuses == ["ok", "ok"]


def test_a_fork_in_the_middle_of_other_threads_calls(place):
    result = run(
        place,
        """
        ran = []
        note = guard.tool(ran.append)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                agent.call(note, 1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                try:
                    agent.call(note, 2)
                except Denied as denied:
                    os._exit(0 if denied.code == "storage.closed" else 2)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        guard.close()
        print(len(ran))
        """,
    )
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == []
    assert place.seen().statuses == ["ok"] * int(result.stdout)


def test_a_child_can_open_a_guard_of_its_own(place):
    """In its own state: the parent's stays the parent's."""
    result = run(
        place,
        """
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            def echo(x):
                return x

            with Guard.ephemeral(lambda _: Decision.allow()) as own:
                print(own.new_agent("a").call(own.tool(echo), 5), flush=True)
            try:
                domain.take_up(settings, b"correct horse battery staple")
            except Exception as error:
                print(error.code, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    )
    assert result.stdout.split() == ["5", "storage.locked"], result.stderr


def test_a_fork_after_close_closes_no_descriptor_of_somebody_else(place):
    """The numbers of a closed log's descriptors belong to whoever opened a file since."""
    result = run(
        place,
        """
        guard.close()
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(30)]
        child = os.fork()
        if child == 0:
            for file in files:
                os.fstat(file)
            print("all open", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    )
    assert result.stdout == "all open\n"
