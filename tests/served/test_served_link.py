"""The connections of a client: what is lost with one, how many there are, and who waits."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from agentguard import ConfigError, Denied, Guard, ServerError, StorageError
from agentguard.client.dial import AtPath
from agentguard.client.link import MOST
from agentguard.wire.stream import Stream


def together(agent, tool, number):
    """Make calls at once, each in a thread of its own."""
    gc.collect()  # only this thread may drop a native engine that another test has left
    with ThreadPoolExecutor(number) as threads:
        for call in [threads.submit(agent.call, tool) for _ in range(number)]:
            assert call.result() == "ok"


def meeting(guard, number):
    """Return a tool that returns once so many calls run."""
    barrier = threading.Barrier(number)

    @guard.tool(name="slow")
    def slow():
        barrier.wait(30)
        return "ok"

    return slow


@contextmanager
def losing(monkeypatch):
    """Lose each report on its way, as a connection does that breaks after it was written to."""
    write = Stream.write

    def lose(self, message):
        if message.header.get("quiet") is not True:
            write(self, message)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write", lose)
        yield


def broken(link):
    """Break the connections that have reports."""
    for connection in link._free:
        if connection.reports:
            connection.stream._socket.shutdown(socket.SHUT_RDWR)


def test_outcomes_that_were_lost_with_connections_arrive(place, monkeypatch):
    guard = place.connect()
    agent, link, number = guard.new_agent("clerk"), guard._parts._link, MOST + 8
    with losing(monkeypatch):
        together(agent, meeting(guard, number), number)
    assert sum(len(connection.reports) for connection in link._free) == number
    assert len(link._streams) <= MOST
    broken(link)
    guard.flush()
    assert len(place.outcomes()) == number
    assert len(link._streams) <= MOST
    assert place.verify().in_doubt == ()


@pytest.mark.parametrize(
    ("call", "says"), [("a" * 32, f"call {'a' * 32} was refused"), ("x\nforged", "a call")]
)
def test_the_server_logs_whose_report_about_which_call_is_refused(place, call, says):
    guard = place.connect()
    link = guard._parts._link
    link.report({"op": "outcome", "request_id": "0" * 32, "call": call})
    guard.flush()
    place.wait_for(lambda: "was refused" in place.said())
    assert f"the report of the server's own user about {says}" in " ".join(place.said().split())
    assert "forged" not in place.said()
    assert "{" not in place.said()


def test_a_request_brings_the_outcomes_too(place, monkeypatch):
    guard = place.connect()
    agent, link = guard.new_agent("clerk"), guard._parts._link
    with losing(monkeypatch):
        together(agent, meeting(guard, 3), 3)
    broken(link)
    for _ in range(4):
        guard.require_agent("clerk")
    assert not link._unsent
    guard.flush()
    assert [one.status for one in place.outcomes()] == ["ok"] * 3


def test_many_outcomes_wait_once_for_a_server_that_is_away_and_the_flush_says_so(
    place, monkeypatch
):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    with losing(monkeypatch):
        together(agent, meeting(guard, 9), 9)
    place.stop(signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ServerError) as caught:
        guard.flush()
    assert time.monotonic() - begun < 2.5  # one patience is half a second
    assert caught.value.code == "server.unreachable"
    place.start()
    with pytest.raises(ServerError, match="9 outcomes did not reach the guard server"):
        guard.flush()
    guard.flush()  # said once
    assert len(place.verify().in_doubt) == 9


def test_the_connections_of_a_session_that_was_forgotten_are_closed(place):
    guard = place.connect()
    agent, link = guard.new_agent("clerk"), guard._parts._link
    together(agent, meeting(guard, 6), 6)
    guard.flush()
    assert len(link._streams) > 1
    place.stop()
    place.start()
    guard.require_agent("clerk")
    assert len(link._streams) == len(link._free) == 1


def test_names_that_the_session_does_not_have_are_made_anew(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    agent.call(tool)
    link, tools = guard._parts._link, guard._parts.tools
    session = link._sessions.copy()
    link._sessions.clear()  # as if another thread had begun a session meanwhile
    link._end_connections(ServerError("gone"))
    guard.require_agent("clerk")
    assert link._sessions not in (session, {})
    assert tools._names
    assert agent.call(tool) == "ok"
    assert agent.call(tool) == "ok"


def test_large_facts_reach_the_policy(place):
    guard = place.connect()
    large = {**{f"k{number}": "x" * 250_000 for number in range(5)}, "balance": 200}
    tool = guard.tool(name="balance", facts=lambda _input: large, gives=list(large))(lambda: "ok")
    assert guard.new_agent("clerk").call(tool) == "ok"


@pytest.mark.parametrize("size", [1, 120])
def test_facts_that_no_policy_reads_leave_no_call_under_way(place, size):
    page = type("Page[int]", (), {})
    facts = {f"k{number}": "x" * 250_000 for number in range(size)}
    if size == 1:
        facts["page"] = page()
    guard = place.connect()
    tool = guard.tool(name="note", facts=lambda _input: facts, gives=list(facts))(lambda: "ok")
    agent = guard.new_agent("clerk")
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == ("facts.invalid" if size == 1 else "frame.too_large")
    assert place.status()["calls"] == 0
    assert agent.call(guard.tool(name="add")(lambda: "ok")) == "ok"


def test_a_call_that_took_too_long_is_withdrawn(founded):
    path = founded.folder / "agentguard.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[server]", "[server]\ntimeout = 0.5"), encoding="utf-8")
    founded.start()
    guard, ran = founded.connect(), []
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: ran.append(1))
    agent.call(tool)
    os.kill(founded.server.pid, signal.SIGSTOP)
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == "server.unreachable"
    os.kill(founded.server.pid, signal.SIGCONT)
    founded.wait_for(lambda: len(founded.calls()) == 2, "the call that came late")
    agent.call(tool)
    guard.flush()
    assert len(ran) == 2
    assert sorted(one.status for one in founded.outcomes()) == ["not_run", "ok", "ok"]
    assert founded.status()["calls"] == 0
    assert founded.verify().in_doubt == ()


def test_a_call_that_took_too_long_has_not_run_where_no_request_follows(founded):
    path = founded.folder / "agentguard.toml"
    text = path.read_text(encoding="utf-8").replace("reconnect = 2", "reconnect = 0.3")
    path.write_text(text.replace("[server]", "[server]\ntimeout = 0.3"), encoding="utf-8")
    founded.start()
    guard, ran = founded.connect(), []
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: ran.append(1))
    agent.call(tool)
    os.kill(founded.server.pid, signal.SIGSTOP)
    with pytest.raises(Denied):
        agent.call(tool)
    os.kill(founded.server.pid, signal.SIGCONT)
    founded.wait_for(lambda: len(founded.outcomes()) == 2, "the outcome of the call that came late")
    assert [one.status for one in founded.outcomes()] == ["ok", "not_run"]
    assert ran == [1]
    assert founded.verify().in_doubt == ()


def test_a_flush_waits_for_the_outcomes_on_connections_in_use(place, monkeypatch):
    guard = place.connect()
    agent, link = guard.new_agent("clerk"), guard._parts._link
    with losing(monkeypatch):
        agent.call(guard.tool(name="note")(lambda: "ok"))
    asks, goes_on = threading.Event(), threading.Event()
    read = Stream.read
    (connection,) = link._free

    def waits(self, **options):
        asks.set()
        assert goes_on.wait(30)
        if self is connection.stream:  # which has lost the outcome
            raise ConnectionResetError
        return read(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "read", waits)
        other = threading.Thread(target=guard.require_agent, args=("clerk",))
        other.start()
        assert asks.wait(30)
        flushing = threading.Thread(target=guard.flush)
        flushing.start()
        flushing.join(0.2)
        assert flushing.is_alive()
        goes_on.set()
        other.join(30)
        flushing.join(30)
    assert not flushing.is_alive()
    assert [one.status for one in place.outcomes()] == ["ok"]


def test_a_signal_handler_waits_for_no_thread_that_its_signal_has_interrupted(place, monkeypatch):
    guard = place.connect()
    agent, link = guard.new_agent("clerk"), guard._parts._link
    agent.call(guard.tool(name="note")(lambda: "ok"))
    assert link._free[0].reports
    write = Stream.write

    def interrupted(self, message):
        with monkeypatch.context() as patched:
            patched.setattr(Stream, "write", write)
            link.flush()  # as a handler does while the thread asks
        write(self, message)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write", interrupted)
        begun = time.monotonic()
        guard.require_agent("clerk")
    assert time.monotonic() - begun < 10
    guard.flush()
    assert [one.status for one in place.outcomes()] == ["ok"]


def test_a_call_that_interrupts_the_first_greeting_is_refused(place, monkeypatch):
    guard = place.connect()
    link = guard._parts._link
    guard._parts.forked()  # which forgets the session
    read, codes = Stream.read, list[str]()

    def interrupted(self, **options):
        if not codes:
            with pytest.raises(StorageError) as caught:
                guard.new_agent("clerk")
            codes.append(caught.value.code)
        return read(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "read", interrupted)
        guard.require_agent("clerk")
    assert codes == ["storage.busy"]
    assert len(link._sessions) == 1
    assert guard.new_agent("clerk").call(guard.tool(name="note")(lambda: "ok")) == "ok"


def test_a_signal_handler_makes_a_call_at_any_step_of_this_thread(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    link = guard._parts._link
    done: list[str] = []

    def interrupted():
        # as within a step that takes a connection or gives the connection back
        with link._slot(), link._lock:
            done.append(agent.call(tool))

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)
    assert done == ["ok"]


def test_a_lock_that_another_thread_holds_at_a_fork_stops_no_call(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    agent.call(tool)
    tools = guard._parts.tools
    locks = [tools._lock, *(name._lock for name in tools._names.values())]
    held, ends, done = threading.Event(), threading.Event(), []

    def holds():
        for lock in locks:
            lock.acquire()
        held.set()
        ends.wait(60)

    threads = [
        threading.Thread(target=holds, daemon=True),
        threading.Thread(target=lambda: done.append(agent.call(tool)), daemon=True),
    ]
    threads[0].start()
    held.wait(30)
    guard._parts.forked()
    threads[1].start()
    threads[1].join(30)
    ends.set()
    assert done == ["ok"]


def test_a_full_queue_of_a_server_is_waited_for(founded):
    path = founded.folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        first = AtPath(path)(1)
        begun = time.monotonic()
        with pytest.raises(BlockingIOError):
            AtPath(path)(0.2)
        assert time.monotonic() - begun >= 0.2

        def accept():
            accepted, _address = server.accept()
            accepted.close()

        waiting = threading.Timer(0.1, accept)
        waiting.start()
        AtPath(path)(30).close()
        waiting.join()
        first.close()


def test_a_url_of_another_machine_needs_a_configuration():
    with pytest.raises(ConfigError, match=r"certificate with its key, or a token.*Guard\.open"):
        Guard.connect("tls://guard.example:7443")


def test_a_missing_authority_of_a_server_is_an_error_of_the_configuration(tmp_path):
    text = '[server]\nurl = "tls://h:1"\nca = "no.pem"\ncertificate = "c.pem"\nkey = "k.pem"\n'
    (tmp_path / "agentguard.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="can't be read"):
        Guard.open(tmp_path / "agentguard.toml")
