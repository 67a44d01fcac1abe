"""What happens at one moment: a client asks while its rights change, or its session ends.

Or the machine has no thread left while a client comes.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import httpcore
import pytest
from ports import free_port
from served_intruder import CALL, described, new_id

from agentguard import ConfigError, ServerError
from agentguard.audit.kinds import parse_entry
from agentguard.domain.config.clients import ClientConfig
from agentguard.guard.embedded import open_embedded
from agentguard.server import requests
from agentguard.server.health import HealthListener
from agentguard.server.launch import Channels
from agentguard.server.peer import Peer
from agentguard.server.pins import ToolPins
from agentguard.server.session import OutdatedError, Session
from agentguard.server.sessions import Sessions
from agentguard.server.share import Share

CLIENT = ClientConfig("web", 64_001, agents=("clerk",))


@pytest.fixture
def parts(founded):
    parts = open_embedded(founded.settings, None, is_server=True)
    yield parts
    parts.close()


@pytest.fixture
def session(founded, parts):
    limits, pins = founded.settings.server, ToolPins(parts.runs)
    ports = parts.runtime.current_ports()
    session = Session(CLIENT, "separate-user", limits, pins, Share(9, 9), ports)
    yield session
    session.abandon()


def asked(parts, session, operation: str, *blobs: bytes, **members: Any) -> dict[str, Any]:
    return dict(requests.OPERATIONS[operation].step(parts, session, members, blobs).header)


def in_log(parts, kind: str) -> int:
    """Return how many entries of a kind the log has."""
    parts.flush()
    reader = parts.reader()
    bodies = [body for _index, body in reader.entries()]
    reader.close()
    return sum(parse_entry(body).kind == kind for body in bodies)


def test_no_instance_is_made_by_a_right_that_a_reload_takes_meanwhile(
    founded, parts, session, monkeypatch
):
    make = parts.instance

    def taken_meanwhile(*of):
        made = make(*of)
        session.follow(replace(CLIENT, agents=("helper",)), parts)
        return made

    parts.reload(founded.settings)
    with monkeypatch.context() as patched:
        patched.setattr(parts, "instance", taken_meanwhile)
        with pytest.raises(OutdatedError):  # the request is carried out once more
            asked(parts, session, "instance", name="clerk")
    session.follow(replace(CLIENT, agents=("helper",)), parts)
    with pytest.raises(ConfigError) as refused:
        asked(parts, session, "instance", name="clerk")
    assert refused.value.code == "agent.refused"
    assert "name" in asked(parts, session, "instance", name="helper")  # the twin


def test_a_client_whose_session_waits_for_a_reload_has_no_instance_on_record(
    founded, parts, session
):
    parts.reload(founded.settings)
    before = in_log(parts, "identity")
    for _ in range(5):
        with pytest.raises(OutdatedError):
            asked(parts, session, "instance", name="clerk")
    assert in_log(parts, "identity") == before
    session.follow(CLIENT, parts)
    asked(parts, session, "instance", name="clerk")
    assert in_log(parts, "identity") == before + 1  # the twin


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_call_whose_session_ends_meanwhile_does_not_begin(parts, session, monkeypatch, has_ended):
    agent = asked(parts, session, "instance", name="clerk")["name"]
    tool = asked(parts, session, "tool", tool=described("note"))["name"]
    said = {**CALL, "request_id": new_id(), "agent": agent, "tool": tool}
    add = Session.add_call

    def ended_meanwhile(self, *call):
        known = add(self, *call)
        if has_ended:
            self.abandon()
        return known

    monkeypatch.setattr(Session, "add_call", ended_meanwhile)
    if has_ended:
        with pytest.raises(ServerError) as refused:
            asked(parts, session, "authorize", b"{}", **said)
        assert refused.value.code == "server.restarted"
    else:  # the twin
        assert asked(parts, session, "authorize", b"{}", **said)["step"] == "run"
    assert in_log(parts, "call") == (0 if has_ended else 1)


SLOW = """
from agentguard.server import session
follow = session.Session.follow
def slow(*rest):
    print("a session follows", flush=True)
    open("pipe").close()  # waits until the test opens the pipe, too
    follow(*rest)
session.Session.follow = slow
"""


def test_a_client_joins_its_session_while_a_reload_is_under_way(founded):
    own = f"[clients.own]\nuid = {os.getuid()}\nagents = ['clerk']\n\n"
    path = founded.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8").replace("[server]", own + "[server]"), "utf-8")
    pipe = founded.folder / "pipe"
    os.mkfifo(pipe)
    founded.start(SLOW)
    guard = founded.connect()
    agent, link = guard.new_agent("clerk"), guard._parts._link
    runs, goes_on = threading.Event(), threading.Event()

    @guard.tool(name="slow")
    def slow():
        runs.set()
        assert goes_on.wait(30)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(agent.call, slow)
        assert runs.wait(30)
        reload = pool.submit(link.request, {"op": "reload"})
        founded.wait_for(lambda: "a session follows" in founded.said())
        try:
            link.connect()  # one more connection
            assert not reload.done()
        finally:
            pipe.write_text("")
        goes_on.set()
        assert call.result() == "done"
        reload.result()
    assert link.generation == 0  # the session is the same
    guard.flush()
    assert [one.status for one in founded.outcomes()] == ["ok"]
    assert founded.verify().in_doubt == ()


@pytest.mark.parametrize("is_back", [True, False])
def test_a_client_that_comes_back_while_it_is_forgotten_stays(founded, parts, monkeypatch, is_back):
    settings = founded.settings
    limits = replace(settings.server, reconnect=-1.0)
    sessions, (ours, theirs) = Sessions(settings, limits, parts), socket.socketpair()
    peer = Peer(ours, sessions.shares.of(os.getuid()), uid=os.getuid())
    session = sessions.join(None, peer, None)
    sessions.leave(session)
    forget = sessions.forget

    def come_back(lost, **options):
        if is_back:
            assert sessions.join(session.handle, peer, None) is session
        forget(lost, **options)

    with ours, theirs, monkeypatch.context() as patched:
        patched.setattr(sessions, "forget", come_back)
        sessions.forget_lost()
    assert session.has_ended is not is_back
    sessions.end()
    assert session.has_ended


@pytest.fixture
def no_thread(monkeypatch):
    """A function that has the machine start no thread, in a context."""

    def fail(_thread):
        raise RuntimeError("can't start new thread")

    @contextmanager
    def no_thread():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            yield

    return no_thread


def test_a_channel_without_a_thread_takes_no_place(no_thread):
    channels = Channels(lambda _connected, _client: None, 1)
    with no_thread(), pytest.raises(ServerError) as refused:
        channels.open(CLIENT)
    assert refused.value.code == "server.busy"
    channels.open(CLIENT).close()  # the twin
    channels.close()


def test_the_listener_for_probes_comes_back_after_a_time_without_threads(no_thread):
    port, status = free_port(), {"draining": False, "log_failure": None}
    with closing(HealthListener(("127.0.0.1", port), lambda: status)):
        with no_thread():
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as refused:
                    assert refused.recv(1) == b""
        answer = httpcore.request("GET", f"http://127.0.0.1:{port}/healthz")
        assert answer.status == 200
