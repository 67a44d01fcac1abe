"""Storage that fails: the tool never runs without a durable authorization, and nothing is lost.

A double in front of the real engine fails before a commit, after a commit, or at a reading.
SQLite's own errors (a full disk, a damaged file) come from SQLite itself. Errors of the kernel are
in test_storage_faults_kernel.py.
"""

from __future__ import annotations

import os
import resource
import shutil
import textwrap
import threading
import time

import pytest
from embedded_parts import runtime_of

from agentguard import Denied, Guard, StorageError
from agentguard.domain.verify import examine as examine_log
from agentguard.storage import flusher
from agentguard.store.reader import StoredLog


@pytest.fixture
def no_flusher(monkeypatch):
    """No thread writes in the background: the calls of the test alone commit."""
    monkeypatch.setattr(flusher, "start", lambda _log, _wake: None)


def test_the_twin_everything_works(guard, faults, note, ran, seen, examine):
    guard.new_agent("a").call(note, text="x")
    assert ran == ["x"]
    assert examine(guard).ok
    assert seen(guard).statuses == ["ok"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("full", code="storage.full"), "storage.full"),
        (StorageError("gone"), "storage.failed"),
        (OSError(5, "I/O error"), "storage.failed"),
        (RuntimeError("a secret"), "storage.failed"),
        (MemoryError(), "storage.failed"),
    ],
    ids=repr,
)
def test_a_write_that_fails_denies_and_later_calls_go_on(
    guard, faults, note, ran, seen, examine, error, code
):
    agent = guard.new_agent("a")
    faults.before = error
    with pytest.raises(Denied) as caught:
        agent.call(note, text="lost")
    assert caught.value.code == code
    assert ran == []
    faults.before = None
    agent.call(note, text="after")
    assert ran == ["after"]
    assert examine(guard).ok
    assert examine(guard).in_doubt == ()
    assert seen(guard).codes == [("allow", "")]


def test_an_error_after_the_commit_does_not_lose_the_entry(guard, faults, note, ran, seen, examine):
    agent = guard.new_agent("a")
    faults.after = OSError("after the commit")
    agent.call(note, text="x")  # the entry is there: the head says so
    faults.after = None
    assert ran == ["x"]
    assert examine(guard).ok
    assert seen(guard).codes == [("allow", "")]
    assert seen(guard).statuses == ["ok"]


def test_an_error_after_the_commit_and_an_unreadable_head_deny(guard, faults, note, ran, examine):
    agent = guard.new_agent("a")
    faults.after = OSError("after the commit")
    faults.at_head = StorageError("unreadable", code="storage.corrupt")
    with pytest.raises(Denied):
        agent.call(note, text="x")
    assert ran == []
    faults.after = faults.at_head = faults.from_commit = None


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_around_the_commit_is_raised_and_the_tool_is_not_run(
    guard, faults, note, ran, seen, examine, interrupt, when
):
    agent = guard.new_agent("a")
    setattr(faults, when, interrupt())
    with pytest.raises(interrupt):
        agent.call(note, text="x")
    setattr(faults, when, None)
    assert ran == []
    report = examine(guard)
    assert report.problems == ()
    assert report.in_doubt == ()
    assert seen(guard).statuses == ["not_run"]
    assert len(seen(guard).authorizations) == (1 if when == "after" else 0)


def test_an_interrupt_is_not_lost_where_the_head_can_not_be_read_either(guard, faults, note, ran):
    agent = guard.new_agent("a")
    faults.before = KeyboardInterrupt()
    faults.at_head = StorageError("unreadable")
    with pytest.raises(KeyboardInterrupt):
        agent.call(note, text="x")
    faults.before = faults.at_head = None
    assert ran == []


def test_a_denial_that_can_not_be_recorded_is_still_a_denial(faults, ran):
    def never(_document):
        raise AssertionError("never asked")

    guard = Guard.ephemeral(never, config={"agents": {"a": {}}})
    tool = guard.tool(ran.append)
    agent = guard.new_agent("a")
    assert runtime_of(guard)._ports is not None
    runtime_of(guard)._ports.log.close()
    with pytest.raises(Denied) as caught:
        agent.call(tool, 1)
    assert caught.value.code == "storage.closed"
    assert ran == []


def test_outcomes_wait_while_the_disk_is_away_and_are_written_when_it_is_back(
    guard, faults, note, ran, seen, examine
):
    agent = guard.new_agent("a")
    agent.call(note, text="1")  # its outcome is enqueued
    faults.before = StorageError("away")
    for _ in range(3):
        with pytest.raises(Denied):
            agent.call(note, text="2")
    with pytest.raises(StorageError):
        runtime_of(guard)._ports.log.flush()
    faults.before = None
    runtime_of(guard)._ports.log.flush()
    assert ran == ["1"]
    assert examine(guard).ok
    assert examine(guard).in_doubt == ()
    assert seen(guard).statuses == ["ok"]


def test_what_waits_is_bounded(guard, faults, note, ran, monkeypatch):
    monkeypatch.setattr("agentguard.store.store.MOST_WAITING", 2)
    agent = guard.new_agent("a")
    agent.call(note, text="1")
    faults.before = StorageError("away")
    log = runtime_of(guard)._ports.log
    ((outcome, _place_in_queue),) = log._unsigned.values()
    log.enqueue(outcome.signed())
    with pytest.raises(Denied) as caught:
        agent.call(note, text="2")
    assert caught.value.code == "storage.full"
    assert ran == ["1"]
    faults.before = None
    log.flush()  # a durable log does so by itself, within a second
    agent.call(note, text="3")
    assert ran == ["1", "3"]


def test_a_failed_commit_fails_everybody_who_waits_for_it(guard, faults, note, ran, examine, seen):
    agent = guard.new_agent("a")
    faults.gate = threading.Event()
    faults.entered.clear()
    faults.before = StorageError("away")
    codes = []

    def call():
        with pytest.raises(Denied) as caught:
            agent.call(note, text="x")
        codes.append(caught.value.code)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert faults.entered.wait(60)
    faults.gate.set()
    for thread in threads:
        thread.join(60)
    assert codes == ["storage.failed"] * 8
    assert ran == []
    faults.before = faults.gate = None
    assert examine(guard).ok
    assert seen(guard).authorizations == []


def test_an_interrupted_leader_does_not_take_its_followers_along(
    guard, faults, note, ran, examine, seen
):
    """Ctrl-C hits the thread that writes for the others: their calls go on."""
    agent = guard.new_agent("a")
    faults.gate = threading.Event()
    faults.entered.clear()
    faults.before = KeyboardInterrupt()
    results = []

    def call(text):
        try:
            results.append(agent.call(note, text=text))
        except BaseException as error:  # noqa: BLE001  an interrupt is one of the results
            results.append(type(error))

    leader = threading.Thread(target=call, args=("leader",))
    leader.start()
    assert faults.entered.wait(60)
    followers = [threading.Thread(target=call, args=("follower",)) for _ in range(4)]
    for thread in followers:
        thread.start()
    deadline = time.monotonic() + 60
    while len(runtime_of(guard)._ports.log._store._waiting) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    gate, faults.gate = faults.gate, None

    def heal_after_first(begun):
        faults.before = None
        begun.commit()

    faults.commit = heal_after_first
    gate.set()
    for thread in [leader, *followers]:
        thread.join(60)
    assert sorted(results, key=str) == sorted([KeyboardInterrupt, *["follower"] * 4], key=str)
    assert ran == ["follower"] * 4
    assert examine(guard).problems == ()
    assert examine(guard).in_doubt == ()


# --- SQLite's own errors -------------------------------------------------------------------------


def writer_of(guard):
    """SQLite's connection by which a guard writes."""
    return runtime_of(guard)._ports.log._store._engine._writer.raw


def test_a_full_disk_denies_and_nothing_is_lost(place, ran, no_flusher):
    guard = place.open()
    agent = guard.new_agent("reader")
    tool = guard.tool(ran.append)
    agent.call(tool, "before")
    connection = writer_of(guard)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 1}")

    def fill():
        for _ in range(50):
            agent.call(tool, "x" * 3000)

    with pytest.raises(Denied) as caught:
        fill()
    assert caught.value.code == "storage.full"
    assert "make room" in caught.value.reason
    full = len(ran)
    connection.execute("PRAGMA max_page_count=1000000")
    agent.call(tool, "after")
    assert ran[full:] == ["after"]
    guard.close()
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok"] * len(ran)


WRITER = """
    import resource, signal, sys
    from datetime import UTC, datetime
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
    guard = Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))
    agent = guard.new_agent("reader")
    effects = []
    tool = guard.tool(effects.append)
    agent.call(tool, "before")
    size = max(path.stat().st_size for path in (folder / "state").glob("log.sqlite*"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
    code = None
    for _ in range(100):
        try:
            agent.call(tool, "x" * 2000)
        except Denied as denied:
            code = denied.code
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    agent.call(tool, "after")
    guard.close()
    print(code, len(effects))
"""


def test_a_limit_on_the_files_size_denies_and_nothing_is_lost(place, programs):
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this session has a limit on file sizes of its own")
    words = ("-c", textwrap.dedent(WRITER), place.config.base)
    result = programs.run(*words, cwd=place.config.base)
    assert result.returncode == 0, result.stderr
    code, effects = result.stdout.split()
    assert code in {"storage.full", "storage.failed"}
    report = place.examine()
    assert report.problems == ()
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok"] * int(effects)


def test_the_file_becomes_unwritable_under_an_open_guard(place, ran, no_flusher):
    guard = place.open()
    agent = guard.new_agent("reader")
    tool = guard.tool(ran.append)
    writer_of(guard).execute("PRAGMA query_only=ON")
    with pytest.raises(Denied) as caught:
        agent.call(tool, "x")
    assert caught.value.code == "storage.readonly"
    assert ran == []
    writer_of(guard).execute("PRAGMA query_only=OFF")
    agent.call(tool, "y")
    guard.close()
    assert ran == ["y"]
    assert place.examine().ok


def test_a_probe_finds_a_file_that_can_not_be_written(place, ran, no_flusher, monkeypatch):
    """Each probe attempts a write of its own here, and none adds an entry."""
    for name in ("_TELLS_FOR", "_FAILS_FOR"):
        monkeypatch.setattr(f"agentguard.store.log_probe.{name}", -1.0)
    guard = place.open()
    guard.new_agent("reader").call(guard.tool(ran.append), "x")
    runtime = runtime_of(guard)
    runtime.flush()
    connection, size = writer_of(guard), runtime._ports.log.head.size
    assert runtime.log_failure() is None
    connection.execute("PRAGMA query_only=ON")
    assert runtime.log_failure().code == "storage.readonly"
    connection.execute("PRAGMA query_only=OFF")
    assert runtime.log_failure() is None
    assert runtime._ports.log.head.size == size
    guard.close()
    assert place.examine().ok


def test_a_state_without_write_permission_is_refused(place):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the test above makes SQLite refuse instead")
    for path in place.config.state.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    place.config.state.chmod(0o500)
    with pytest.raises(StorageError) as caught:
        place.open()
    assert caught.value.code == "storage.readonly"


def test_an_anchor_that_can_not_be_written_denies_before_a_second_batch(place, ran, no_flusher):
    guard = place.open()
    agent = guard.new_agent("reader")
    tool = guard.tool(ran.append)
    agent.call(tool, "before")
    anchor = runtime_of(guard)._ports.log._store._anchor
    path, kept = anchor.path, anchor.path.with_name("kept")
    path.rename(kept)
    path.mkdir()  # as on a file system gone read-only: nobody can write there
    codes = []
    for text in ("rides on the last anchor", "denied", "denied"):
        try:
            agent.call(tool, text)
        except Denied as denied:
            codes.append(denied.code)
    assert codes == ["anchor.unwritable"] * 2
    assert ran == ["before", "rides on the last anchor"]
    path.rmdir()
    kept.rename(path)
    agent.call(tool, "after")
    assert ran[-1] == "after"
    guard.close()
    assert place.examine().ok
    assert place.examine().anchored


# --- a commit of which nobody knows whether it has happened ---------------------------------------


@pytest.fixture
def doubted(place, put_faults, no_flusher):
    """An open guard, its agent, and the engine of its log, which fails where the test says."""
    guard = place.open()
    faults = put_faults(guard)
    yield guard, guard.new_agent("reader"), faults
    faults.before = faults.after = faults.at_head = faults.from_commit = None
    guard.close()


@pytest.mark.parametrize("committed", [True, False], ids=["it was durable", "it was not"])
@pytest.mark.parametrize("tries", [0, 1, 3])
def test_a_commit_of_unknown_fate_denies_until_the_head_is_read_and_goes_in_once(
    place, doubted, ran, committed, tries
):
    guard, agent, faults = doubted
    tool = guard.tool(ran.append, name="note")
    agent.call(tool, "before")  # its outcome is in the batch whose fate is unknown
    error = OSError(5, "I/O error")
    faults.before, faults.after = (None, error) if committed else (error, None)
    faults.from_commit = StorageError("unreadable", code="storage.corrupt")
    with pytest.raises(Denied) as caught:
        agent.call(tool, "unknown")
    assert caught.value.code == "storage.unknown"
    faults.before = faults.after = None  # it can be written again, but not yet known to
    faults.entered.clear()
    for _ in range(tries):
        with pytest.raises(Denied):
            agent.call(tool, "meanwhile")
        with pytest.raises(StorageError):
            runtime_of(guard)._ports.log.flush()
    assert not faults.entered.is_set(), "something was written on top of what is unknown"
    faults.at_head = faults.from_commit = None
    agent.call(tool, "after")
    guard.close()
    assert ran == ["before", "after"]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    seen = place.seen()
    # what was denied may be on record as allowed: then the log says, too, that it did not run
    assert sorted(seen.statuses) == ["not_run", "ok", "ok"]
    assert len(seen.authorizations) == (3 if committed else 2)
    assert report.in_doubt == ()


def test_what_waits_in_a_batch_of_unknown_fate_is_told_so_and_nothing_goes_in_twice(
    place, doubted, ran
):
    guard, agent, faults = doubted
    tool = guard.tool(ran.append, name="note")
    faults.gate = threading.Event()
    faults.after = OSError(5, "I/O error")
    faults.from_commit = StorageError("unreadable")
    faults.entered.clear()
    denied = []

    def call(number):
        with pytest.raises(Denied) as caught:
            agent.call(tool, number)
        denied.append(caught.value.code)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    assert faults.entered.wait(60)
    faults.gate.set()
    for thread in threads:
        thread.join(60)
    # those of the batch are told that nobody knows, those after it that nothing can be written
    assert "storage.unknown" in denied
    assert set(denied) <= {"storage.unknown", "storage.failed"}
    assert len(denied) == 6
    assert ran == []
    faults.after = faults.at_head = faults.from_commit = None
    agent.call(tool, "after")
    guard.close()
    report = place.examine()
    assert report.problems == ()
    assert ran == ["after"]
    bodies = [entry.members for entry in place.seen().entries if entry.kind == "call"]
    assert len({str(body) for body in bodies}) == len(bodies)
    assert set(place.seen().statuses) == {"ok", "not_run"}
    assert report.in_doubt == ()


def test_a_process_that_dies_not_knowing_leaves_a_log_in_order(place, doubted, ran):
    guard, agent, faults = doubted
    tool = guard.tool(ran.append, name="note")
    faults.after = OSError(5, "I/O error")
    faults.from_commit = StorageError("unreadable")
    with pytest.raises(Denied):
        agent.call(tool, "unknown")
    # what a SIGKILL would leave: neither flushed nor closed
    image = place.config.base / "image"
    ignore = shutil.ignore_patterns("*-shm")
    shutil.copytree(place.config.state, image / "state", ignore=ignore)
    shutil.copytree(place.config.anchor, image / "anchor")
    reader = StoredLog.of(image / "state")
    report = examine_log(reader, guard.trust, anchor=image / "anchor")
    reader.close()
    assert report.problems == ()
    assert report.anchored
    assert len(report.in_doubt) == 1
    assert ran == []
