"""Clients on other machines that are slow, or take more than their share, over TLS."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from served_place import IMPATIENT, founded_place
from served_remote import BATCH, WEB, Remote

from agentguard.server import tls
from agentguard.server.share import MOST_WARNINGS
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

HELLO = {"op": "hello", "protocol": 1, "session": None}


impatient = pytest.mark.parametrize("remote", [IMPATIENT], ids=["impatient"], indirect=True)

FEW = """
from agentguard.server import share, tls

share.MOST_CONNECTIONS = 3
few = tls.Handshakes
tls.Handshakes = lambda _most: few(100)  # else the first of three would make room for the fourth
"""
"""Code for a server that has three connections of other machines at a time."""


@pytest.fixture
def remote(request, programs) -> Iterator[Remote]:
    """A server for other machines; a parameter is code that the server's process runs first."""
    with founded_place(programs) as place:
        yield Remote(place, getattr(request, "param", ""))


@pytest.fixture
def dial(remote):
    """Connect as a client by its certificate; the connections end with the test."""
    files = {spiffe: remote.authority.issue(name, spiffe) for name, spiffe in
             (("web", WEB), ("batch", BATCH))}  # fmt: skip
    made = []

    def dial(spiffe):
        made.append(remote.socket(files[spiffe]))
        return made[-1]

    yield dial
    for one in made:
        one.close()


def first_word(connected):
    """Return the server's first word; None where the server has closed the connection."""
    try:
        return Stream(connected).read().header
    except (OSError, ValueError):
        return None


def greeted(connected):
    assert first_word(connected) == {"protocol": 1}
    stream = Stream(connected)
    stream.write(Frame(HELLO))
    assert "session" in stream.read().header
    return stream


def has_ended(connected):
    connected.settimeout(0.01)
    try:
        return connected.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@impatient
def test_remote_clients_that_are_slow_lose_their_connections(remote, dial):
    silent, half, begun, idle = (dial(WEB) for _ in range(4))
    for connected in (silent, half):
        assert first_word(connected) == {"protocol": 1}
    half.sendall(b"\0\0")
    for connected in (begun, idle):
        greeted(connected)
    begun.sendall((20 << 20).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"{}")
    waiting = [silent, half, begun]
    for _ in range(600):
        waiting = [one for one in waiting if not has_ended(one)]
        if not waiting:
            break
        time.sleep(0.1)
    assert waiting == []
    assert not has_ended(idle)  # the twin: a client that has said hello may be silent


def test_a_remote_client_takes_no_place_of_another(remote, dial):
    """Each has its share, also of the connections that have not said hello."""
    limits = resource.prlimit(remote.place.server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(remote.place.server.pid, resource.RLIMIT_NOFILE, (400, limits[1]))
    held, refused = [], 0
    for _ in range(200):
        connected = dial(WEB)
        held.append(connected)
        with suppress(OSError):
            connected.settimeout(30)
        word = first_word(connected)
        if word != {"protocol": 1}:
            refused += 1
            if refused > 3:
                break
            continue
        greeting = Stream(connected)
        greeting.write(Frame(HELLO))
        greeting.read()
    assert refused > 3
    greeted(dial(BATCH))  # the twin
    assert "failed in the server" not in remote.place.said()


def test_connections_without_a_certificate_shut_nobody_out(remote, dial):
    """The handshake that began first ends, and hears nothing in clear text."""
    most = 1100
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 4096), limits[1]))
    held: list[socket.socket] = []
    try:
        while len(held) < most:
            held.append(socket.create_connection(("127.0.0.1", remote.port), timeout=30))
        began = time.monotonic()
        greeted(dial(BATCH))
        assert time.monotonic() - began < tls.HANDSHAKE / 2
        assert has_ended(held[0])
        assert not has_ended(held[-1])
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@impatient
def test_a_remote_client_that_does_not_read_an_answer_loses_its_connection(remote, dial):
    data, (deaf, reader) = b"x" * (8 << 20), (dial(WEB), dial(WEB))
    for connected in (deaf, reader):
        assert first_word(connected) == {"protocol": 1}
        connected.settimeout(30)
        Stream(connected).write(Frame(HELLO))
        assert "session" in Stream(connected).read().header
    Stream(reader).write(Frame({"op": "runs.write", "name": "large"}, [data]))
    assert Stream(reader).read().header == {"added": True}
    for connected in (deaf, reader):
        Stream(connected).write(Frame({"op": "runs.read", "name": "large"}))
    assert Stream(reader).read().blobs == [data]  # the twin

    def is_gone():
        with remote.place.connect() as guard:
            status = guard._parts._link.request({"op": "status"}).header
        return status["connections"] == 1  # of the reader

    remote.place.wait_for(is_gone, "the connection of the deaf client")


def test_refused_certificates_hear_nothing_and_fill_no_log(remote, dial):
    files = remote.authority.issue("stranger", "spiffe://acme.example/stranger")
    for _ in range(MOST_WARNINGS + 10):
        with remote.socket(files) as refused:
            assert refused.recv(100) == b""
    said = remote.place.said().count("a connection of another machine is refused")
    assert 0 < said <= MOST_WARNINGS
    greeted(dial(WEB))  # the twin


@pytest.mark.parametrize("remote", [FEW], ids=["few"], indirect=True)
def test_a_connection_past_the_limit_ends_before_tls_and_hears_nothing(remote, dial):
    address = ("127.0.0.1", remote.port)
    held = [socket.create_connection(address, timeout=30) for _ in range(3)]
    try:
        assert not any(has_ended(one) for one in held)
        began = time.monotonic()
        with socket.create_connection(address, timeout=30) as refused:
            assert refused.recv(100) == b""
        assert time.monotonic() - began < tls.HANDSHAKE / 2  # which would end it as well
    finally:
        for one in held:
            one.close()
    remote.place.wait_for(lambda: is_served(dial), "a place of a connection that has ended")


def is_served(dial):
    try:
        return first_word(dial(WEB)) == {"protocol": 1}
    except OSError:
        return False


@pytest.mark.parametrize("reads", [False, True])
def test_a_remote_client_that_does_not_read_loses_its_connection(monkeypatch, reads):
    monkeypatch.setattr(tls, "_UNHEARD", 3)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as served,
    ):
        tls.limit(served)
        assert served.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if reads:
            sender = threading.Thread(target=served.sendall, args=(bytes(64 << 20),))
            sender.start()
            left = 64 << 20
            while left:
                left -= len(client.recv(min(left, 1 << 20)))
            sender.join()
        else:
            with pytest.raises(OSError, match="timed out"):
                served.sendall(bytes(64 << 20))
