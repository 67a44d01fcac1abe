"""An inherited channel whose answers are not what a process has waited for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentguard import ServerError
from agentguard.client.dial import AtPath, Inherited
from agentguard.client.link import Link
from agentguard.errors import DecodeError
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream


@contextmanager
def channel() -> Iterator[tuple[Inherited, Stream]]:
    """Return a process's way to a server, and the server's end of the channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Inherited(ours.fileno()), Stream(theirs)


def given(server: Stream, *, ended: bool) -> socket.socket:
    """Answer with a connection; return the server's end, which is closed already where ``ended``.

    The server closes what was given to a process that has ended before it read the answer.
    """
    mine, theirs = socket.socketpair()
    with theirs:
        server.write_with(Frame({}), theirs.fileno())
    if ended:
        mine.close()
    return mine


def test_connections_of_processes_that_have_ended_are_skipped():
    with channel() as (dial, server):
        for _ in range(3):
            given(server, ended=True)
        with given(server, ended=False) as mine:
            stream = dial(30)
            mine.sendall(b"\0")
            assert stream._socket.recv(1) == b"\0"
            stream.close()


def test_a_server_that_closes_all_its_connections_is_unreachable():
    with channel() as (dial, server):
        for _ in range(40):
            given(server, ended=True)
        link = Link(dial, timeout=30)
        with pytest.raises(ServerError) as caught:
            link.connect()
        assert caught.value.code == "server.unreachable"
        assert "start the program again with agentguard run" in str(caught.value)


def test_a_refusal_is_raised_as_the_server_has_said_it():
    with channel() as (dial, server):
        server.write(Frame({"error": values.error(ServerError("wait", code="server.busy"))}))
        with pytest.raises(ServerError) as caught:
            dial(30)
        assert caught.value.code == "server.busy"


@pytest.mark.parametrize("answer", [Frame({}), Frame({"error": 5}), Frame({"error": {}})])
def test_an_answer_without_a_connection_is_no_answer(answer: Any):
    with channel() as (dial, server):
        server.write(answer)
        with pytest.raises(DecodeError):
            dial(30)


def test_a_server_that_does_not_answer_is_unreachable_after_the_time_limit():
    with channel() as (dial, _server), pytest.raises(ServerError) as caught:
        Link(dial, timeout=0.05).connect()
    assert caught.value.code == "server.unreachable"


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_hangs_is_told_from_one_that_is_not_there(tmp_path, listens):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        if listens:
            server.bind(str(path))
            server.listen()
        with pytest.raises(ServerError) as caught:
            Link(AtPath(path), timeout=0.05).connect()
    assert ("listens and does not answer" in str(caught.value)) is listens
    assert ("start it with agentguard serve" in str(caught.value)) is not listens
