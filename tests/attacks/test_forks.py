"""Forks with a guard open: each process has a connection and a key of its own.

What a fork inherits (the parent's key, its locks, the state of SQLite) is never used in the child.
Real processes throughout. Servers that fork are in test_forks_of_servers.py.
"""

from __future__ import annotations

import os
import textwrap
from collections import Counter

import pytest
from denial_lines import without_denials
from forked_logs import calls, verified

FORKS = 150 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 6

OPEN = """
    import gc, multiprocessing, os, signal, subprocess, sys, threading, time
    from pathlib import Path
    from agentguard import Decision, Denied, Guard, adapters
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

    guard = opened()
    agent = guard.new_agent("reader")

    @guard.tool
    def note(text: str) -> str:
        return text

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def fork(work):
        \"\"\"Run ``work`` in a fork, which exits as it says; return its process id.\"\"\"
        child = os.fork()
        if child == 0:
            signal.alarm(120)  # hanging is dying
            try:
                work()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        return child

    def wait(*children):
        for child in children:
            status = os.waitpid(child, 0)[1]
            assert status == 0, f"a child ended with the status {status}"
"""


def with_a_guard(text: str) -> str:
    body = textwrap.dedent(text)
    assert not body.lstrip("\n").startswith(" "), "it would be part of the last function above"
    return textwrap.dedent(OPEN) + body


@pytest.fixture
def run(place, programs):
    """Runs a program with a guard open on ``place``; returns the lines that it says."""

    def run(text: str) -> list[str]:
        words = ("-W", "error", "-c", with_a_guard(text), place.config.base)
        result = programs.run(*words, cwd=place.config.base)
        assert result.returncode == 0, result.stderr
        assert without_denials(result.stderr) == ""
        return result.stdout.splitlines()

    return run


def test_parent_child_and_grandchild_each_go_on_as_an_instance_of_their_own(place, run):
    lines = run(
        """
        def work(name, generations):
            agent.call(note, text=name)
            say(name, agent.id)
            if generations:
                child = fork(lambda: work(name + "/child", generations - 1))
                agent.call(note, text=name)
                wait(child)
            agent.call(note, text=name)
            guard.close()

        work("parent", 2)
        """
    )
    said = dict(line.split() for line in lines)
    assert set(said) == {"parent", "parent/child", "parent/child/child"}
    assert len(set(said.values())) == 3
    verified(place)
    on_record = Counter(calls(place))
    assert on_record == Counter(
        {
            (said["parent"], "parent"): 3,
            (said["parent/child"], "parent/child"): 3,
            (said["parent/child/child"], "parent/child/child"): 2,
        }
    )


def test_a_call_that_interrupts_the_making_of_the_childs_instance_is_denied(place, run):
    code, line = run(
        """
        from agentguard import Denied
        from agentguard.guard import instance

        class Interrupted(instance.Ed25519Signer):
            @classmethod
            def from_seed(cls, seed):
                instance.Ed25519Signer = cls.__base__
                signal.raise_signal(signal.SIGUSR1)
                return cls.__base__.from_seed(seed)

        def handler(*_):
            try:
                agent.call(note, text="handler")
            except Denied as error:
                say(error.code)

        def work():
            instance.Ed25519Signer = Interrupted
            signal.signal(signal.SIGUSR1, handler)
            agent.call(note, text="child")
            say(agent.id)
            guard.close()

        wait(fork(work))
        guard.close()
        """
    )
    verified(place)
    assert code == "storage.busy"
    assert calls(place) == [(line, "child")]


def test_the_parents_key_is_gone_from_the_childs_agent(place, run):
    lines = run(
        """
        from agentguard.signing.keys import Ed25519Signer
        from agentguard.guard.instance import Instance

        def instances():
            gc.collect()
            return [o for o in gc.get_objects() if isinstance(o, Instance)]

        agent.call(note, text="parent")
        key = agent._caller.instance().actor.signer.key_id
        uri = agent.id

        def child():
            assert instances() == [], "the parent's instance is still there"
            agent.call(note, text="child")
            (own,) = instances()
            assert own.actor.signer.key_id != key
            assert agent.id != uri
            assert agent.id.endswith(own.actor.signer.key_id)
            guard.close()

        wait(fork(child))
        assert agent._caller.instance().actor.signer.key_id == key
        agent.call(note, text="parent")
        guard.close()
        """
    )
    assert lines == []
    verified(place)
    uris = {text: {uri for uri, found in calls(place) if found == text} for text in NAMES}
    assert len(uris["parent"]) == len(uris["child"]) == 1
    assert uris["parent"] != uris["child"]


NAMES = ("parent", "child")


def test_a_fork_that_never_calls_leaves_the_parents_guard_alone(place, run):
    run(
        """
        agent.call(note, text="before")
        wait(*(fork(lambda: None) for _ in range(3)))
        wait(*(fork(guard.close) for _ in range(3)))
        agent.call(note, text="after")
        guard.close()
        """
    )
    verified(place)
    assert [text for _uri, text in calls(place)] == ["before", "after"]


def test_what_was_enqueued_before_the_fork_is_written_once_and_by_the_parent(place, run):
    run(
        """
        agent.call(note, text="parent")  # its outcome waits for 50 ms
        wait(fork(lambda: agent.call(note, text="child") and guard.close()))
        guard.close()
        """
    )
    verified(place)
    assert sorted(text for _uri, text in calls(place)) == ["child", "parent"]


def test_a_child_outlives_its_parent(place, run):
    """It calls on after the parent's guard is closed, and beside another guard."""
    run(
        """
        ready, go = os.pipe()
        def child():
            os.close(go)
            os.read(ready, 1)  # until the parent's guard is closed
            for _ in range(20):
                agent.call(note, text="child")
            guard.close()

        child = fork(child)
        agent.call(note, text="parent")
        guard.close()
        other = opened()
        os.close(go)
        other.new_agent("reader").call(note, text="other")
        wait(child)
        other.close()
        """
    )
    verified(place)
    found = Counter(text for _uri, text in calls(place))
    assert found == {"parent": 1, "other": 1, "child": 20}


KILLED_WRITER = """
    for _ in range(5):
        agent.call(note, text="later")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
def test_the_end_of_a_child_does_not_touch_what_was_written_after_it_was_forked(place, run, end):
    """Its inherited connection, closed, would remove the write-ahead log of a later writer."""
    (place.config.base / "killed.py").write_text(with_a_guard(KILLED_WRITER))
    run(
        f"""
        agent.call(note, text="parent")
        guard._parts.runtime.flush()  # the flusher holds on to nothing
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            os.close(go)
            os.read(ready, 1)
            from agentguard.storage import flusher
            from agentguard.storage import sqlite as shared
            from agentguard.store import sqlite, store
            # all that refers to it, as at the interpreter's end
            flusher._UNCLOSED.clear()
            for module in (store, sqlite, shared):
                vars(module).clear()
            home = guard = agent = note = opened = fork = wait = None
            gc.collect()
            {end}
        guard.close()
        killed = subprocess.run([sys.executable, folder / "killed.py", folder])
        assert killed.returncode == -signal.SIGKILL
        os.close(go)
        wait(child)
        """
    )
    verified(place, in_doubt=True)
    assert Counter(text for _uri, text in calls(place)) == {"parent": 1, "later": 5}


LOOK = """
import sqlite3, sys
from pathlib import Path

# one that may write, and that could be the last to close
connection = sqlite3.connect(Path(sys.argv[1]) / "state" / "log.sqlite")
connection.execute("SELECT count(*) FROM entry").fetchone()
connection.close()
"""


def test_a_child_writes_the_log_that_its_parent_was_reading(place, run):
    """SQLite would take it for locked already, and whoever comes next for free."""
    (place.config.base / "look.py").write_text(LOOK)
    run(
        """
        reader = guard.reader()
        rows = reader.entries()
        next(rows)

        def child():
            for number in range(30):
                agent.call(note, text="child")
                if number in (10, 20):
                    subprocess.run([sys.executable, folder / "look.py", folder], check=True)
            os.kill(os.getpid(), signal.SIGKILL)

        child = fork(child)
        assert list(rows)
        reader.close()
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        guard.close()
        """
    )
    verified(place, in_doubt=True)
    assert Counter(text for _uri, text in calls(place)) == {"child": 30}


def test_a_fork_may_find_the_other_threads_anywhere(place, run):
    """Also inside SQLite, whose own locks would then be held in the child by nobody."""
    lines = run(
        f"""
        stop = threading.Event()
        made = []

        def work():
            while not stop.is_set():
                agent.call(note, text="parent")
                made.append(1)

        def child():
            agent.call(note, text="child")
            guard.close()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range({FORKS}):
                wait(fork(child))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        guard.close()
        say(len(made))
        """
    )
    verified(place)
    found = Counter(text for _uri, text in calls(place))
    assert found == {"parent": int(lines[0]), "child": FORKS}


CLOSING = {
    "by another thread": "threading.Thread(target=guard.close).start()",
    "by this one, as in a signal's handler": "guard.close()",
    "by nobody": "pass",
}


@pytest.mark.parametrize("how", CLOSING)
def test_a_guard_that_is_closed_while_a_fork_begins_to_use_it_is_closed(place, run, how):
    lines = run(
        f"""
        open_log = domain.StateDomain.open_log

        def meanwhile(home, *args, **options):
            {CLOSING[how]}
            time.sleep(0.3)
            return open_log(home, *args, **options)

        def attempt():
            try:
                return agent.call(note, text="ran")
            except Denied as denied:
                return denied.code

        def child():
            domain.StateDomain.open_log = meanwhile
            adapters.evaluate(agent, agent._invocation(note, ("first",), {{}}))  # records nothing
            for thread in threading.enumerate():
                if thread is not threading.main_thread() and not thread.daemon:
                    thread.join()
            say(guard.closed, attempt())
            guard.close()

        wait(fork(child))
        domain.StateDomain.open_log = open_log
        guard.close()
        """
    )
    expected = "False ran" if how == "by nobody" else "True storage.closed"
    assert lines == [expected]
    verified(place)


@pytest.mark.parametrize("inside", [True, False])
def test_a_fork_while_a_lock_is_released_does_not_keep_it(place, run, inside):
    """The child would have a descriptor that it does not know of, and the state stay claimed.

    The twin is forked after the release.
    """
    lines = run(
        f"""
        from agentguard.storage import claim, lock

        guard.close()
        held = lock.try_acquire(folder / "state" / claim.FILE)
        number, same = held.fileno(), os.dup(held.fileno())
        held.close()
        os.dup2(same, number)  # it is closed for Python, and not yet for the system
        os.close(same)
        if not {inside}:
            os.close(number)
        (done, tell), (begun, begin) = os.pipe(), os.pipe()
        child = fork(lambda: (os.close(tell), os.write(begin, b"1"), os.read(done, 1)))
        if {inside}:
            os.close(number)
        os.read(begun, 1)
        claim.take(folder / "state", alone=True)()
        say("free")
        os.close(tell)
        wait(child)
        """
    )
    assert lines == ["free"]
    verified(place)


def test_multiprocessing_with_the_fork_method(place, run):
    lines = run(
        """
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(3)

        def serve(number, results):
            agent.call(note, text=f"child {number}")
            barrier.wait(120)  # all three are at work now
            results.put(agent.id)

        results = context.SimpleQueue()
        children = [context.Process(target=serve, args=(n, results)) for n in range(3)]
        for child in children:
            child.start()
        agent.call(note, text="parent")
        for _ in children:
            say(results.get())
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        say(agent.id)
        guard.close()
        """
    )
    assert len(set(lines)) == 4
    verified(place, in_doubt=True)  # by os._exit they end, and what was enqueued with them
    texts = {text for _uri, text in calls(place)}
    assert texts == {"parent", "child 0", "child 1", "child 2"}


def test_a_childs_own_examination_agrees(place, run):
    lines = run(
        """
        from agentguard.domain.verify import examine

        agent.call(note, text="parent")
        def child():
            agent.call(note, text="child")
            report = examine(guard.reader(), guard.trust, anchor=settings.anchor)
            say(report.ok, report.anchored)
            guard.close()

        wait(fork(child))
        agent.call(note, text="parent")
        guard.close()
        """
    )
    assert lines == ["True True"]
    verified(place)
