"""A server that loads an application with a guard and forks: the workers write one log."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest
from forked_logs import calls, verified

APPLICATION = """
import json, os, sys, time
from pathlib import Path
from urllib.parse import parse_qs
from agentguard import Guard

guard = Guard.open(Path(__file__).parent / "agentguard.toml",
                   passphrase=b"correct horse battery staple")
agent = guard.new_agent("reader")


@guard.tool
def note(text: str) -> str:
    time.sleep(0.02)  # long enough for the next request to go to another worker
    return text


def application(environ, start_response):
    (text,) = parse_qs(environ["QUERY_STRING"])["text"]
    result = agent.call(note, text=text)
    answer = {"pid": os.getpid(), "id": agent.id, "result": result}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
"""

POLICY = """
from agentguard import Decision


def decide(document):
    return Decision.allow()
"""

CONFIG = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "decisions:decide"

[agents.reader]
authority = "own"
"""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(str(self._path))


def ask(path: Path, text: str) -> dict[str, object]:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", f"/?text={quote(text)}")
        response = connection.getresponse()
        assert response.status == 200
        return dict(json.loads(response.read()))
    finally:
        connection.close()


@pytest.fixture
def server(place, tmp_path):
    """gunicorn with --preload and four workers, shut down by SIGTERM; yields its socket."""
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "decisions.py").write_text(POLICY)
    (tmp_path / "agentguard.toml").write_text(CONFIG)
    where = tmp_path / "s"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers=4", f"--bind=unix:{where}"]
    process = subprocess.Popen(
        [*command, "--no-control-socket", "application"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )

    def stop() -> str:
        process.send_signal(signal.SIGTERM)
        _nothing, errors = process.communicate(timeout=120)
        return str(errors)

    try:
        deadline = time.monotonic() + 120
        while not where.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield where, stop
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_server_that_preloads_and_forks(place, server):
    where, stop = server
    answers = []

    def client(number: int) -> None:
        for request in range(10):
            answers.append(ask(where, f"{number}-{request}"))  # noqa: PERF401  seen as they come

    # until every worker has had its turn, which the kernel decides
    for round_ in range(20):
        threads = [
            threading.Thread(target=client, args=(8 * round_ + number,)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if len({answer["pid"] for answer in answers}) == 4:
            break
    errors = stop()
    assert "Traceback" not in errors
    assert len(answers) % 80 == 0
    by_process = {(answer["pid"], answer["id"]) for answer in answers}
    assert len(by_process) == 4
    assert len({uri for _pid, uri in by_process}) == 4
    verified(place)
    on_record = Counter(calls(place))
    answered = Counter((a["id"], a["result"]) for a in answers)
    assert on_record == answered
