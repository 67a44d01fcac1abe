"""A server that ends, starts anew, or can't be had; two servers; a guard beside a server."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from served_place import SECRET

from agentguard import ConfigError, Denied, Guard, ServerError, StorageError, secret
from agentguard.client.link import Link
from agentguard.client.names import Name
from agentguard.delegation.context import running_call
from agentguard.guard.embedded import open_embedded

TGKILL = 234 if platform.machine() == "x86_64" else 131
"""The number of Linux's system call that sends a signal to one thread."""


@pytest.mark.parametrize("which", ["oldest", "newest", "main"])
def test_a_signal_that_any_thread_gets_ends_the_server(place, which):
    """The kernel may give a signal to any thread, and Python's handler runs in the first one."""
    pid = place.server.pid
    assert place.connect().new_agent("clerk").name == "clerk"
    tasks = [
        int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid
    ]
    assert len(tasks) >= 2
    chosen = {"oldest": min(tasks), "newest": max(tasks), "main": pid}[which]
    sent = ctypes.CDLL(None).syscall(TGKILL, pid, chosen, int(signal.SIGTERM))
    assert sent == 0
    place.wait_for(lambda: "ending" in place.said(), "the end of the server", seconds=10)
    assert place.server.wait() == 0
    place.server = None


def test_without_a_server_nothing_runs(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    ran: list[str] = []
    tool = guard.tool(name="note")(ran.append)
    agent.call(tool, "before")
    place.stop(signal.SIGKILL)
    with pytest.raises(Denied) as caught:
        agent.call(tool, "without")
    assert caught.value.code == "server.unreachable"
    assert ran == ["before"]
    with pytest.raises(ServerError):
        Guard.connect(place.url)
    place.start()
    agent.call(tool, "after")  # by itself, as a new instance
    assert ran == ["before", "after"]


def test_a_call_is_denied_where_the_server_is_gone_again(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    place.stop(signal.SIGKILL)
    place.start()
    assert guard.approvals.pending() == []  # the client has a new session, without the instance
    place.stop(signal.SIGKILL)
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == "server.unreachable"
    place.start()
    assert agent.call(tool) == "ok"


def test_a_name_of_an_earlier_session_is_made_again():
    class Sessions:
        generation = 1

    made: list[int] = []

    def make():
        made.append(Sessions.generation)
        if len(made) == 1:  # another thread finds that the server was started anew
            Sessions.generation += 1
        return made[-1]

    name = Name(cast("Link", Sessions), make)
    assert [name(), name(), name()] == [1, 2, 2]


def test_a_client_goes_on_with_a_server_that_was_started_anew(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    before = agent.id
    tool = guard.tool(name="note", requires=["read"])(lambda: "ok")
    lent = guard.delegate("user:alice", scope=["read"])
    with lent:
        assert agent.call(tool) == "ok"
    place.stop()
    place.start()
    with lent:
        assert agent.call(tool) == "ok"
    assert agent.id != before
    guard.close()
    assert place.verify().ok


def test_a_call_that_runs_while_the_server_is_killed_is_in_doubt(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")

    @guard.tool(name="slow")
    def slow():
        place.stop(signal.SIGKILL)
        place.start()
        return "done"

    assert agent.call(slow) == "done"
    guard.close()
    place.wait_for(lambda: len(place.verify().in_doubt) == 1, "the call in doubt")
    assert place.verify().ok


def test_a_server_that_ends_waits_for_the_outcomes(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    begun, goes_on = threading.Event(), threading.Event()

    @guard.tool(name="slow")
    def slow():
        begun.set()
        goes_on.wait(30)
        return "done"

    caller = threading.Thread(target=agent.call, args=(slow,))
    caller.start()
    begun.wait(30)
    stopping = threading.Thread(target=place.stop)
    stopping.start()
    place.wait_for(lambda: "ending" in place.said() or not stopping.is_alive())
    goes_on.set()
    caller.join()
    stopping.join()
    assert [one.status for one in place.outcomes()] == ["ok"]
    assert place.verify().in_doubt == ()


def test_a_server_that_ends_serves_the_calls_under_way(founded):
    settings = founded.folder / "agentguard.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("drain = 1", "drain = 30"), encoding="utf-8")
    founded.start()
    guard = founded.connect()
    agent = guard.new_agent("clerk")
    runs, looks_up, goes_on = threading.Event(), threading.Event(), threading.Event()
    results: dict[str, str] = {}

    @guard.tool(name="note")
    def note():
        runs.set()
        goes_on.wait(30)
        return secret("TOKEN")

    def facts(_arguments):
        looks_up.set()
        goes_on.wait(30)
        return {"balance": 200}

    balance = guard.tool(name="balance", facts=facts, gives=["balance"])(lambda: "rich")

    new = guard.tool(name="add")(lambda: "new")

    def call(name, tool):
        try:
            results[name] = str(agent.call(tool))
        except Denied as denied:
            results[name] = denied.code

    callers = [
        threading.Thread(target=call, args=pair) for pair in (("note", note), ("balance", balance))
    ]
    for caller in callers:
        caller.start()
    assert runs.wait(30)
    assert looks_up.wait(30)
    stopping = threading.Thread(target=founded.stop)
    stopping.start()
    founded.wait_for(lambda: "ending" in founded.said() or not stopping.is_alive())
    with pytest.raises(Denied) as caught:
        agent.call(new)
    goes_on.set()
    for thread in (*callers, stopping):
        thread.join()
    assert caught.value.code == "server.draining"  # the twin
    assert results == {"note": SECRET.decode(), "balance": "rich"}
    assert founded.verify().in_doubt == ()


def test_another_interrupt_ends_the_wait_for_outcomes(founded):
    settings = founded.folder / "agentguard.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("drain = 1", "drain = 60"), encoding="utf-8")
    founded.start()
    guard = founded.connect()
    agent, runs, goes_on = guard.new_agent("clerk"), threading.Event(), threading.Event()

    @guard.tool(name="note")
    def note():
        runs.set()
        goes_on.wait(30)

    caller = threading.Thread(target=agent.call, args=(note,))
    caller.start()
    assert runs.wait(30)
    server = founded.server
    os.kill(server.pid, signal.SIGINT)
    founded.wait_for(lambda: "ending: 1 call runs" in founded.said())
    assert "Ctrl-C" in founded.said()
    founded.stop(signal.SIGINT)  # a wait of 60 seconds would end the test
    assert len(founded.verify().in_doubt) == 1
    goes_on.set()
    caller.join()


def test_an_outcome_that_is_lost_names_its_call(place, caplog):
    """The server is killed while a tool runs: one line at the client, with what to do."""
    guard = place.connect()
    agent, ids = guard.new_agent("clerk"), []

    @guard.tool(name="note")
    def note():
        call = running_call()
        assert call is not None
        ids.append(call.invocation_id)
        place.stop(signal.SIGKILL)
        return "done"

    assert agent.call(note) == "done"
    with pytest.raises(ServerError):
        guard.flush()
    assert (
        f"the outcome of call {ids[0]} of tool note did not reach the guard server" in caplog.text
    )
    assert "agentguard resolve" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_client_that_comes_back_to_a_full_server_has_its_place(founded):
    settings = founded.folder / "agentguard.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("[server]", "[server]\nmax_clients = 2"), encoding="utf-8")
    founded.start()
    guard, other = founded.connect(), founded.connect()
    agent = guard.new_agent("clerk")
    link = other._parts._link

    def is_lost():
        return link.request({"op": "status"}).header["connections"] == 0

    @guard.tool(name="slow")
    def slow():
        for stream in tuple(guard._parts._link._streams):
            stream._socket.shutdown(socket.SHUT_RDWR)
        founded.wait_for(is_lost, "the server notes that the connections are lost")
        return "done"

    assert agent.call(slow) == "done"
    guard.flush()
    assert [one.status for one in founded.outcomes()] == ["ok"]
    assert founded.verify().in_doubt == ()


@pytest.mark.parametrize("deaf", ["", "output", "manager"])
def test_a_server_that_nobody_hears_waits_for_the_outcomes(founded, deaf):
    """As below ``agentguard serve | head -1``, or where the service manager has gone."""
    path = founded.folder / "notify"
    reads, writes = os.pipe()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        os.fdopen(reads, "rb") as said,
        os.fdopen(writes, "wb") as output,
        (founded.folder / "errors").open("wb") as errors,
        Path(os.devnull).open("rb") as nothing,
    ):
        manager.bind(str(path))
        words = ("-m", "agentguard.cli", "serve")
        env = {**os.environ, "NOTIFY_SOCKET": str(path)}
        streams = (nothing, output, errors)
        server = founded.programs.start(*words, cwd=founded.folder, env=env, streams=streams)
        output.close()
        assert manager.recv(100) == b"READY=1"
        if deaf == "manager":
            path.unlink()
        if deaf == "output":
            said.close()
        agent = founded.connect().new_agent("clerk")

        def slow():
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.3)
            return "done"

        assert agent.call(founded.guards[0].tool(name="slow")(slow)) == "done"
        code = server.wait()
    assert (code == 0) is (deaf == "")
    assert [one.status for one in founded.outcomes()] == ["ok"]
    assert founded.verify().in_doubt == ()
    assert not (founded.folder / "s").exists()


def test_a_socket_of_another_kind_is_not_replaced(founded):
    path = founded.folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        result = founded.programs.run("-m", "agentguard.cli", "serve", cwd=founded.folder)
        assert result.returncode == 2
        assert "server.address" in result.stderr
        assert path.is_socket()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:  # the twin: nobody listens
        gone.bind(str(path))
    founded.start()
    assert founded.connect().new_agent("clerk").name == "clerk"


def test_a_second_server_on_one_state_says_so(place):
    result = place.programs.run("-m", "agentguard.cli", "serve", cwd=place.folder)
    assert result.returncode == 2
    assert "storage.used" in result.stderr
    assert place.connect().new_agent("clerk").name == "clerk"  # the first one goes on


def test_a_guard_beside_a_server_is_refused(place):
    with pytest.raises(StorageError) as caught:
        open_embedded(place.settings, None)
    assert caught.value.code == "storage.served"
    assert "[server]" in str(caught.value)
    place.stop()
    open_embedded(place.settings, None).close()  # the twin


def test_a_server_beside_a_guard_is_refused(founded):
    parts = open_embedded(founded.settings, None)
    result = founded.programs.run("-m", "agentguard.cli", "serve", cwd=founded.folder)
    assert result.returncode == 2
    assert "storage.used" in result.stderr
    parts.close()
    founded.start()  # the twin


def test_a_guard_that_nobody_has_any_more_keeps_servers_away_while_it_may_write(founded):
    script = (
        "import gc, warnings\n"
        "warnings.simplefilter('default')\n"  # an unclosed file is told of
        "from pathlib import Path\n"
        "from agentguard import Guard, StorageError\n"
        "from agentguard.domain import config\n"
        "from agentguard.guard.embedded import open_embedded\n"
        "from agentguard.storage import claim\n"
        "guard = Guard(open_embedded(config.load(Path('agentguard.toml')), None))\n"
        "guard.new_agent('clerk')\n"
        "del guard\n"
        "gc.collect()\n"
        "try:\n"
        "    claim.take(Path(STATE), alone=True)\n"
        "except StorageError as error:\n"
        "    print(error.code)\n"
    ).replace("STATE", repr(str(founded.settings.state)))
    result = founded.programs.run("-c", script, cwd=founded.folder)
    assert result.stdout == "storage.used\n"
    assert "unclosed" not in result.stderr
    founded.start()  # the twin


def test_the_status_of_a_server(place):
    guard = place.connect()
    guard.new_agent("clerk")
    result = place.programs.run("-m", "agentguard.cli", "server", "status", cwd=place.folder)
    assert result.returncode == 0
    assert "clients" in result.stdout
    place.stop()
    result = place.programs.run("-m", "agentguard.cli", "server", "status", cwd=place.folder)
    assert result.returncode == 2
    assert "server.unreachable" in result.stderr


def test_the_server_s_own_user_looks_after_a_server_with_other_clients(founded):
    with (founded.folder / "agentguard.toml").open("a", encoding="utf-8") as file:
        file.write('[clients.somebody]\nuid = 64001\nagents = ["*"]\n')
    founded.start()
    assert founded.status()["clients"] == 0  # the asker is not counted
    with pytest.raises(ConfigError) as caught:
        founded.connect().new_agent("clerk")
    assert caught.value.code == "agent.refused"
    assert "the server's own user may not be the agent clerk" in str(caught.value)
    assert "agentguard.toml, and then run agentguard server reload" in str(caught.value)


def test_an_outcome_arrives_after_the_connections_were_lost(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")

    @guard.tool(name="slow")
    def slow():
        for stream in tuple(guard._parts._link._streams):
            stream._socket.shutdown(socket.SHUT_RDWR)
        return "done"

    assert agent.call(slow) == "done"
    before = agent.id
    assert agent.call(guard.tool(name="note")(lambda: "ok")) == "ok"
    assert agent.id == before  # it is the same session
    guard.close()
    assert [one.status for one in place.outcomes()] == ["ok", "ok"]
    assert place.verify().in_doubt == ()
    assert place.verify().ok


def test_a_client_that_dies_in_a_tool_leaves_its_call_in_doubt(place):
    program = (
        "import os\nfrom agentguard import Guard\n"
        "guard = Guard.open('agentguard.toml')\n"
        "guard.new_agent('clerk').call(guard.tool(name='slow')(lambda: os._exit(0)))\n"
    )
    assert place.programs.run("-c", program, cwd=place.folder).returncode == 0
    assert [call.decision for call in place.calls()] == ["allow"]
    assert len(place.verify().in_doubt) == 1
    place.wait_for(lambda: place.status()["in_doubt"] == 1, "the server forgets the client")
    assert place.verify().ok
    assert place.outcomes() == []  # nobody has made one up
