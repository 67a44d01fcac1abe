"""A server that a service manager starts: the socket that it inherits, and what the manager hears.

The tests are the service manager: they listen, and start ``agentguard serve`` with the socket as
descriptor 3, as systemd does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentguard import Guard

SERVES = """
import os, sys
descriptor, process, number, *command = sys.argv[1:]
os.dup2(int(descriptor), 3)
variables = {"LISTEN_PID": process or str(os.getpid()), "LISTEN_FDS": number}
os.execve(command[0], command, {**os.environ, **variables})
"""


Server = subprocess.Popen[str]


@contextmanager
def listening(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.bind(str(path))
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made


@pytest.fixture
def start(founded) -> Iterator[Callable[..., Server]]:
    """Start a server with a descriptor 3, and with the variables that systemd sets."""
    started: list[Server] = []

    def start(handed: socket.socket, process: str = "", number: int = 1, **more: str) -> Server:
        words = [SERVES, str(handed.fileno()), process, str(number)]
        server = subprocess.Popen(
            [sys.executable, "-c", *words, sys.executable, "-m", "agentguard.cli", "serve"],
            cwd=founded.folder,
            env={**os.environ, **more},
            pass_fds=[handed.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
        server.communicate()


def end(server: Server) -> str:
    """End the server, and return what it has said to people who look for errors."""
    server.terminate()
    _output, errors = server.communicate()
    assert server.returncode == 0, errors
    return errors


@pytest.mark.slow("starts an interpreter")
def test_the_socket_of_a_service_manager_outlives_the_server(founded, start):
    path = founded.folder / "handed.sock"
    with listening(path) as handed:
        for _ in range(2):
            server = start(handed)
            with Guard.connect(f"unix:{path}") as guard:  # waits until the server accepts
                assert guard.new_agent("clerk").call(guard.tool(name="note")(lambda: "ok")) == "ok"
            assert not (founded.folder / "s").exists()
            end(server)
            assert path.is_socket()
    assert founded.verify().ok
    assert len(founded.outcomes()) == 2


@pytest.mark.slow("starts an interpreter")
def test_a_socket_for_another_process_is_no_socket_for_the_server(founded, start):
    with listening(founded.folder / "handed.sock") as handed:
        server = start(handed, "1")
        assert server.stdout is not None
        assert server.stdout.readline().endswith(f"at unix:{founded.folder / 's'}\n")
        founded.connect()
        end(server)


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize(
    ("kind", "number", "says"),
    [
        (socket.SOCK_DGRAM, 1, "no listening unix socket"),
        (socket.SOCK_STREAM, 2, "hands over 2 sockets"),
    ],
)
def test_what_is_no_listening_socket_is_refused(founded, start, kind, number, says):
    with listening(founded.folder / "handed.sock", kind) as handed:
        server = start(handed, number=number)
        _output, errors = server.communicate()
    assert server.returncode == 2
    assert "server.address" in errors
    assert says in " ".join(errors.replace("|", " ").split())  # lines are as wide as a terminal


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize("kind", ["path", "abstract", "path with @"])
def test_the_service_manager_hears_of_the_start_and_of_the_end(founded, start, kind):
    folder = founded.folder / ("u@1" if "@" in kind else "u")
    folder.mkdir()
    name = f"\0{folder}" if kind == "abstract" else str(folder / "notify")
    with (
        listening(founded.folder / "handed.sock") as handed,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(name)
        manager.settimeout(60)
        server = start(handed, NOTIFY_SOCKET=name.replace("\0", "@"))
        assert manager.recv(100) == b"READY=1"
        server.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        end(server)
