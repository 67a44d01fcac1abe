"""SIGKILL at random moments, forks, and the end of the process.

Nothing takes effect without a durable authorization; what was acknowledged is not lost; what had
begun is listed as in doubt; the state opens again. A few rounds by default,
``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import os
import random
import signal
import textwrap
import time

import pytest

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.signing.canonical import loads_object
from agentguard.store.reader import StoredLog

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
ROUNDS = 8 if FULL else 1
GENERATIONS = 3 if FULL else 2
PROCESSES = 4
"""Killed at once, in each generation of a round."""

LOAD = """
    import asyncio, os, signal, sys, threading
    from pathlib import Path
    from agentguard import Decision, Denied, Guard
    from agentguard.guard.embedded import Embedded
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine

    folder = Path(sys.argv[1])
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"reader": {"authority": "own"}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")

    def opened():
        return Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))
"""

OPEN = """
    guard = opened()
    agent = guard.new_agent("reader")
"""


def program(*texts):
    return "".join(textwrap.dedent(text) for text in (LOAD, *texts))


@pytest.fixture
def run(place, programs):
    """Run a program with a guard open on ``place``, or, to ``load``, only with all it takes."""

    def run(text, *arguments, check=True, load=False):
        texts = (text,) if load else (OPEN, text)
        words = ("-W", "error", "-c", program(*texts), place.config.base, *arguments)
        result = programs.run(*words, cwd=place.config.base)
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


# --- SIGKILL --------------------------------------------------------------------------------------

EFFECTS = """
    effects = os.open(folder / "effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    print("loaded", flush=True)
    sys.stdin.readline()
    guard = opened()
    agent = guard.new_agent("reader")

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


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_kills_at_any_moment_leave_no_effect_without_its_authorization(programs, place, round_):
    """Several processes at once on one log, some killed before they have opened it."""
    doubtful: set[str] = set()
    total = 0
    for generation in range(GENERATIONS):  # each on the state that the last one has left
        names = [f"{generation}-{process}" for process in range(PROCESSES)]
        effects, acknowledged = killed_while_they_work(programs, place, names)
        report = place.examine()
        assert report.problems == ()
        on_record, unfinished = calls_on_record(place)
        assert effects <= on_record.keys(), "an effect without a durable authorization"
        assert acknowledged <= on_record.keys(), "an acknowledged call is lost"
        assert acknowledged <= effects
        assert set(report.in_doubt) == unfinished
        assert doubtful <= set(report.in_doubt), "what was in doubt stays so"
        doubtful = set(report.in_doubt)
        total += len(effects)

    assert total > 0
    # the state opens again, and goes on where it was
    guards = [place.open() for _ in range(PROCESSES)]
    for guard in guards:
        assert guard.new_agent("reader").call(guard.tool(echo), name="again") == "again"
        guard.close()
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert set(report.in_doubt) == doubtful


def calls_on_record(place):
    """Return the invocation id of each durable authorization by its call's name; the unfinished."""
    names, open_calls = {}, {}
    reader = StoredLog.of(place.config.state)
    try:
        for stored in reader.stored():
            parsed = parse_entry(stored.body)
            if isinstance(parsed, CallEntry):
                (kept,) = [a.data for a in stored.attachments if a.role == "arguments"]
                names[loads_object(kept)["name"]] = parsed.invocation_id
                open_calls[parsed.invocation_sha256] = parsed.invocation_id
            elif isinstance(parsed, OutcomeEntry):
                del open_calls[parsed.invocation_sha256]
    finally:
        reader.close()
    return names, set(open_calls.values())


def killed_while_they_work(programs, place, names):
    """Kill processes at random; return the effects that they had and the calls they knew of."""
    path = place.config.base / "effects"
    path.unlink(missing_ok=True)
    children = [
        programs.talk("-c", program(EFFECTS), place.config.base, name, cwd=place.config.base)
        for name in names
    ]
    acknowledged: set[str] = set()
    try:
        for child in children:
            assert child.stdout.readline() == "loaded\n"
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        begun = time.monotonic()
        # the way to the first call takes about 30 ms, more where all go it at once
        moments = sorted(random.random() ** 2 * 0.4 for _ in children)  # noqa: S311  no secret
        for child, moment in zip(children, moments, strict=True):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            if child is children[-1]:
                wait_for(lambda: path.exists() and path.stat().st_size)
            child.kill()
    finally:
        for child in children:
            child.kill()
            output, _nothing = child.communicate()
            acknowledged.update(output.split("\n")[:-1])
    assert [child.returncode for child in children] == [-signal.SIGKILL] * len(children)
    effects = path.read_text().split("\n")[:-1]
    assert len(effects) == len(set(effects)), "an effect happened twice"
    return set(effects), acknowledged


SEAMS = """
    from itertools import count
    from agentguard.domain.verify import examine
    from agentguard.store.reader import StoredLog

    EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate",
              "fcntl.flock", "sqlite3.connect", "sqlite3.connect/handle", "os.listdir"}

    def in_a_fork(work):
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            try:
                work()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def verify():
        reader = StoredLog.of(folder / "state")
        report = examine(reader, home.trust, anchor=settings.anchor)
        assert report.problems == (), report.problems

    def run_and_die(at):
        events = count(1)

        def hook(event, _arguments):
            if event in EVENTS and next(events) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        guard = opened()
        agent = guard.new_agent("reader")
        agent.call(guard.tool(note), str(at))
        os.write(1, f"{at}\\n".encode())
        guard.close()

    def note(name: str) -> str:
        return name

    killed = 0
    for at in range(int(sys.argv[2]), 10_000, int(sys.argv[3])):
        status = in_a_fork(lambda: run_and_die(at))
        assert in_a_fork(verify) == 0
        if status == 0:
            break
        assert status == signal.SIGKILL
        killed += 1
    print("killed", killed)
"""


def test_kills_at_each_seam_of_opening_the_log_and_making_a_call(place, run):
    """One after the other, at each file that is opened, renamed, locked, ... on the way."""
    step = 1 if FULL else 7
    result = run(SEAMS, str(random.randint(1, step)), str(step), load=True)  # noqa: S311
    *acknowledged, killed = result.stdout.splitlines()
    assert int(killed.removeprefix("killed ")) >= 20 // step
    on_record, unfinished = calls_on_record(place)
    assert set(acknowledged) <= on_record.keys()
    report = place.examine()
    assert report.problems == ()
    assert set(report.in_doubt) == unfinished
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(echo), name="again")
    report = place.examine()
    assert report.problems == ()
    assert report.anchored


def echo(name: str) -> str:
    return name


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def test_a_kill_inside_a_tool_leaves_its_call_in_doubt(place, run):
    result = run(
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
def test_an_outcome_survives_the_end_of_the_process(place, end, run):
    run(
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
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok"]


def test_a_log_that_can_not_be_closed_at_the_end_keeps_no_other_open(place, run):
    result = run(
        """
        def fail():
            raise RuntimeError("the engine can't be closed")

        for one in (guard, opened(), opened()):
            one.new_agent("reader").call(one.tool(lambda: "done", name="note"))
            one._parts.runtime._ports.log._store._engine.close = fail
        """,
    )
    assert result.stderr.count("RuntimeError: the engine can't be closed") == 3
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    assert place.seen().statuses == ["ok"] * 3


def test_leaving_the_context_flushes(place, ran):
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(ran.append), 1)
    assert place.examine().in_doubt == ()


async def test_leaving_the_async_context_flushes(place, ran):
    async with place.open() as guard:
        await guard.new_agent("reader").acall(guard.tool(ran.append), 1)
    assert place.examine().in_doubt == ()


def test_an_outcome_is_durable_soon_without_any_other_call(place, ran):
    guard = place.open()
    guard.new_agent("reader").call(guard.tool(ran.append), 1)
    wait_for(lambda: place.seen().statuses == ["ok"])  # 50 ms, where nobody else is at work
    guard.close()


# --- forks (more of them in test_forks.py) --------------------------------------------------------


@pytest.mark.parametrize("end", ["guard.close(); os._exit(0)", "sys.exit(0)"])
def test_after_a_fork_child_and_parent_go_on(place, end, run):
    result = run(
        f"""
        ran = []
        note = guard.tool(ran.append)
        agent.call(note, 1)
        parents = agent.id
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            for _ in range(2):
                agent.call(note, 2)
            print(ran, agent.id == parents, flush=True)
            {end}
        assert os.waitpid(child, 0)[1] == 0
        agent.call(note, 3)
        guard.close()
        print(ran, agent.id == parents)
        """,
    )
    assert result.stdout.split("\n")[:-1] == ["[1, 2, 2] False", "[1, 3] True"]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok"] * 4
    kinds = [entry.kind for entry in place.seen().entries]
    assert kinds.count("identity") == 2


def test_after_a_fork_async_calls_go_on_and_do_not_hang(place, run):
    result = run(
        """
        @guard.tool
        async def note():
            return os.getpid()

        asyncio.run(agent.acall(note))
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            print(asyncio.run(agent.acall(note)) == os.getpid(), flush=True)
            guard.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        asyncio.run(agent.acall(note))
        """,
    )
    assert result.stdout == "True\n"
    assert place.examine().ok
    assert place.seen().statuses == ["ok"] * 3


def test_a_fork_in_the_middle_of_other_threads_calls(place, run):
    result = run(
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
        ends = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(120)
                agent.call(note, 2)
                guard.close()
                os._exit(0)
            ends.append(os.waitpid(child, 0)[1])
        stop.set()
        for thread in threads:
            thread.join()
        guard.close()
        assert ends == [0] * 10, ends
        print(len(ran))
        """,
    )
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok"] * (int(result.stdout) + 10)


def test_a_child_can_open_a_guard_of_its_own(place, run):
    """In memory, and on the parent's state beside the parent."""
    result = run(
        """
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            def echo(x):
                return x

            with Guard.ephemeral(lambda _: Decision.allow()) as own:
                print(own.new_agent("a").call(own.tool(echo), 5), flush=True)
            home = domain.take_up(settings, b"correct horse battery staple")
            with Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home)) as own:
                print(own.new_agent("reader").call(own.tool(echo), 6), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    )
    assert result.stdout.split() == ["5", "6"], result.stderr
    report = place.examine()
    assert report.problems == ()


def test_a_guard_in_memory_does_not_outlive_a_fork(run):
    """Two histories would begin in one log: the child is refused, and the parent goes on."""
    result = run(
        """
        ran = []
        memory = Guard.ephemeral(lambda _: Decision.allow())
        own, note = memory.new_agent("a"), memory.tool(ran.append)
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            for call in (own.call, lambda *args: asyncio.run(own.acall(*args))):
                try:
                    call(note, 1)
                except Denied as denied:
                    print(denied.code, ran, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        own.call(note, 2)
        print(ran)
        """,
    )
    assert result.stdout.split("\n")[:-1] == ["storage.closed []"] * 2 + ["[2]"]


def test_a_fork_after_close_closes_no_descriptor_of_somebody_else(run):
    """The numbers of a closed log's descriptors belong to whoever opened a file since."""
    result = run(
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
