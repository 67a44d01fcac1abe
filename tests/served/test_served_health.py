"""What a server says of itself: its status, and the listener for probes and metrics."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpcore
import pytest
from ports import free_port

from agentguard import ConfigError, Denied
from agentguard.domain import config


@pytest.fixture
def port(founded):
    """The port of the server's health."""
    port = free_port()
    path = founded.folder / "agentguard.toml"
    text = path.read_text("utf-8").replace("[server]", f'[server]\nhealth = "127.0.0.1:{port}"')
    path.write_text(text, "utf-8")
    return port


def get(port: int, path: str) -> tuple[int, str]:
    answer = httpcore.request("GET", f"http://127.0.0.1:{port}{path}")
    return answer.status, answer.content.decode()


def one_allowed_and_one_denied(guard) -> None:
    agent = guard.new_agent("clerk")
    agent.call(guard.tool(name="note")(lambda: "ok"))
    with pytest.raises(Denied):
        agent.call(guard.tool(name="drop")(lambda: "ok"))


def test_the_status_counts_what_clients_have_done(place):
    def status() -> dict[str, Any]:
        command = ("-m", "agentguard.cli", "server", "status", "--json")
        found: dict[str, Any] = json.loads(place.programs.run(*command, cwd=place.folder).stdout)
        return found

    before = status()
    assert (before["denials"], before["in_doubt"], before["draining"]) == (0, 0, False)
    one_allowed_and_one_denied(place.connect())
    after = status()
    assert after["denials"] == 1
    assert after["requests"] > before["requests"]
    assert after["isolation"] == {"same-user": 1}  # and not the command
    assert after["version"]
    shown = place.programs.run("-m", "agentguard.cli", "server", "status", cwd=place.folder).stdout
    assert re.search(r"clients by isolation +\| 1 same-user$", shown, re.MULTILINE)
    assert "in doubt since start" in shown
    assert "0:00:" in shown


def test_a_probe_and_the_metrics(founded, port):
    founded.start()
    one_allowed_and_one_denied(founded.connect())
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/other")[0] == 404
    code, text = get(port, "/metrics")
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert code == 200
    assert rows["agentguard_server_clients"] == "1"
    assert rows["agentguard_server_denials_total"] == "1"
    assert rows["agentguard_server_calls"] == "0"
    assert rows["agentguard_server_draining"] == "0"
    assert int(rows["agentguard_server_requests_total"]) > 2
    for name in rows:
        plain = name.partition("{")[0]
        assert f"# HELP {plain} " in text
        assert f"# TYPE {plain} " in text
    assert "clerk" not in text


def test_a_server_that_drains_is_not_ready(founded, port):
    founded.start()
    guard = founded.connect()
    agent, goes_on, begun = guard.new_agent("clerk"), threading.Event(), threading.Event()

    @guard.tool(name="slow")
    def slow():
        begun.set()
        goes_on.wait(30)

    caller = threading.Thread(target=agent.call, args=(slow,))
    caller.start()
    begun.wait(30)
    assert get(port, "/healthz")[0] == 200
    stopping = threading.Thread(target=founded.stop)
    stopping.start()
    founded.wait_for(lambda: "ending" in founded.said())
    assert get(port, "/healthz") == (503, "draining\n")
    goes_on.set()
    caller.join()
    stopping.join()
    with pytest.raises(httpcore.ConnectError):
        get(port, "/healthz")


def test_idle_connections_to_the_port_hold_up_no_call(founded, port):
    founded.start()
    guard = founded.connect()
    with ExitStack() as idle:
        for _ in range(40):
            idle.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
        one_allowed_and_one_denied(guard)
    founded.wait_for(lambda: answers(port), "the port")


def test_requests_that_come_byte_by_byte_do_not_hold_the_port(founded, port):
    """A request has one time limit, which no byte begins anew."""
    founded.start()
    with ExitStack() as slow:
        held = [
            slow.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
            for _ in range(16)
        ]
        assert not answers(port)
        for _ in range(100):  # a read waits less than a tenth of the limit
            for one in held:
                with suppress(OSError):
                    one.sendall(b"G")
            if answers(port):
                break
            time.sleep(0.1)
        assert answers(port)


def answers(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except (httpcore.ConnectError, httpcore.ReadError, httpcore.RemoteProtocolError):
        return False


def test_a_port_in_use_is_an_error_of_the_start(founded, port):
    with closing(socket.create_server(("127.0.0.1", port))):
        result = founded.programs.run("-m", "agentguard.cli", "serve", cwd=founded.folder)
    assert result.returncode == 2
    assert "server.address" in result.stderr
    assert str(port) in result.stderr
    founded.start()
    assert get(port, "/healthz")[0] == 200  # the twin


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:9464",
        "192.0.2.7:9464",
        "[::]:9464",
        "localhost:9464",  # a name may lead anywhere
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        ":9464",
    ],
)
def test_only_loopback_is_an_address_for_probes(tmp_path, address):
    with pytest.raises(ConfigError, match="loopback"):
        health_of(address, tmp_path)


@pytest.mark.parametrize(
    ("address", "read"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:9464", ("::1", 9464))],
)
def test_loopback_is_an_address_for_probes(tmp_path, address, read):
    assert health_of(address, tmp_path) == read


def health_of(address, folder):
    tables = {"trust_domain": "acme.example", "server": {"url": "unix:s", "health": address}}
    settings = config.parse(tables, source="test", base=folder)
    assert settings.server is not None
    return settings.server.health


def test_a_server_that_can_not_start_leaves_no_file_beside_its_socket(founded, port):
    with socket.create_server(("127.0.0.1", port)):
        serve = ("-m", "agentguard.cli", "serve")
        refused = founded.programs.run(*serve, cwd=founded.folder)
        assert refused.returncode != 0
        assert f"port {port}" in refused.stderr
        assert not [*founded.folder.glob("s*.lock"), *founded.folder.glob("s")]
    founded.start()
    assert [path.name for path in founded.folder.glob("s*")] == ["s", "state"]
    founded.stop()
    assert not (founded.folder / "s").exists()


def test_calls_in_doubt_from_before_the_start_are_counted_until_somebody_settles_them(
    founded, port
):
    founded.start()
    guard = founded.connect()
    one_allowed_and_one_denied(guard)
    guard.flush()

    @guard.tool(name="slow")
    def slow():
        founded.stop(signal.SIGKILL)

    guard.new_agent("clerk").call(slow)
    guard.close()
    founded.start("from agentguard.server import doubts; doubts._SETTLED_AFTER = 0.0")
    founded.wait_for(lambda: "in doubt from before the start: 1" in founded.said())

    def figures() -> tuple[Any, ...]:
        code, text = get(port, "/metrics")
        assert code == 200
        status = founded.status()
        row = f"agentguard_server_in_doubt_before_start {status['in_doubt_before']}\n"
        return status["in_doubt_before"], status["in_doubt"], row in text

    assert figures() == (1, 0, True)
    command = ("-m", "agentguard.cli", "server", "status")
    shown = founded.programs.run(*command, cwd=founded.folder).stdout
    assert "in doubt before start | 1" in shown
    (in_doubt,) = founded.verify().in_doubt
    resolve = ("-m", "agentguard.cli", "resolve", in_doubt, "--ran", "--note", "x")
    settled = founded.programs.run(*resolve, cwd=founded.folder)
    assert settled.returncode == 0, settled.stderr
    assert figures() == (0, 0, True)
