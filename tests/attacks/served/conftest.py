"""A guard server whose clients are other users of the machine, one of them hostile.

The tests of a module share a server, which has to hold out against all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from served_intruder import CLIENTS, MALLORY, VICTIM, Intruder, dialled, require_root
from served_place import Place, founded_place

from agentguard.wire.stream import Stream

FAILED = "failed in the server"
"""What the server's log says of a mistake in the server."""


def require_sound(place: Place) -> None:
    """Fail unless the server still runs, and has met no error that it does not expect."""
    said = place.said()
    assert FAILED not in said
    assert "Exception in thread" not in said
    assert place.status()["draining"] is False


@pytest.fixture(scope="module")
def server(request, programs) -> Iterator[Place]:
    """A trust domain whose server runs, for clients of several users.

    A parameter is code that the server's process runs first.
    """
    require_root()
    with founded_place(programs, CLIENTS) as place:
        place.folder.chmod(0o755)
        place.start(getattr(request, "param", ""))
        yield place


@pytest.fixture
def place(server) -> Iterator[Place]:
    """The server of this module; of the log, what is new."""
    server.since = len(server.entries()) + server.since
    yield server
    require_sound(server)


@pytest.fixture
def own_place(programs) -> Iterator[Place]:
    """A server for one test."""
    require_root()
    with founded_place(programs, CLIENTS) as place:
        place.folder.chmod(0o755)
        place.start()
        yield place


@pytest.fixture
def intrude(place) -> Iterator[Callable[..., Intruder]]:
    """Make a client with code of its own, under a user (``MALLORY`` by default)."""
    made: list[Intruder] = []

    def intrude(uid: int = MALLORY, **members: Any) -> Intruder:
        made.append(Intruder(place, uid, **members))
        return made[-1]

    yield intrude
    for one in made:
        with suppress(OSError):
            one.tell("end")
        one.close()


@pytest.fixture
def dial(place) -> Iterator[Callable[[int], socket.socket]]:
    """Connect as a user; the connections end with the test."""
    made: list[socket.socket] = []

    def dial(uid: int) -> socket.socket:
        made.append(dialled(place.folder / "s", uid))
        return made[-1]

    yield dial
    for one in made:
        one.close()


@pytest.fixture
def greeted(dial) -> Callable[[], socket.socket]:
    """Connect as the hostile client, and wait for the server's first words."""

    def greeted() -> socket.socket:
        connected: socket.socket = dial(MALLORY)
        Stream(connected).read()
        return connected

    return greeted


@pytest.fixture
def mallory(intrude) -> Intruder:
    """The hostile client."""
    return intrude()


@pytest.fixture
def victim(intrude) -> Intruder:
    """A client of another user."""
    return intrude(VICTIM)
