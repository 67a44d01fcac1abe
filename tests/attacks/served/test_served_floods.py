"""Garbage, half frames, clients that do not read, and more than a client's share.

In each test another client goes on. ``AGENTGUARD_ROUNDS=full`` ends broken connections
until there were 20,000 of a kind or 20 seconds have passed. ``AGENTGUARD_FRAMES=10000000`` sends
ten million frames in place of 60,000, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from rounds import FULL
from served_intruder import CALL, MALLORY, VICTIM, Intruder, acting_as, described, dialled, new_id
from served_place import IMPATIENT

from agentguard.server.requests import OPERATIONS
from agentguard.server.share import LARGE_AT_ONCE, MOST_CONNECTIONS, MOST_WARNINGS
from agentguard.signing import canonical
from agentguard.wire.frame import MAX_FRAME, Frame, encode
from agentguard.wire.stream import Stream

FRAMES = int(os.environ.get("AGENTGUARD_FRAMES", "60000"))
BROKEN = 20_000 if FULL else 3_000
SECONDS = 20.0
"""How long connections are broken, on a machine too slow for all of them."""
BATCH = 1_000
impatient = pytest.mark.parametrize("server", [IMPATIENT], ids=["impatient"], indirect=True)
HELLO = encode(Frame({"op": "hello", "protocol": 1, "session": None}))


@pytest.fixture
def goes_on(victim):
    """A function that makes a call of another client."""
    names = victim.agent("clerk"), victim.tool("note")

    def goes_on():
        assert victim.call(*names, {"text": "x"}).header["step"] == "run"

    goes_on()
    return goes_on


def rss(place):
    """Return the resident memory of the server, in MiB."""
    status = Path(f"/proc/{place.server.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) >> 10


# --- garbage --------------------------------------------------------------------------------------


def framed(header, rest=b""):
    """Return bytes with the prefix of a frame."""
    size = 4 + len(header) + len(rest)
    return size.to_bytes(4, "big") + len(header).to_bytes(4, "big") + header + rest


def nonsense(chance):
    """Return a well-framed request that means nothing; it has exactly one answer."""
    values: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        2**53,
        1e300,
        "",
        "x",
        "\x00",
        [],
        {},
        [[]],
        {"a": {}},
    )
    ops: tuple[Any, ...] = (*OPERATIONS, "hello", "launch", "status", "", "__class__", None, 5, [])
    names = ("agent", "tool", "request_id", "delegation", "name", "key", "request", "answer", "id")
    header = {name: chance.choice(values) for name in chance.sample(names, 4)}
    return framed(orjson.dumps({**header, "op": chance.choice(ops)}))


def test_frames_that_mean_nothing_are_answered(mallory, goes_on, place):
    chance = random.Random(5)  # noqa: S311  no secret
    batches = [b"".join(nonsense(chance) for _ in range(BATCH)) for _ in range(20)]
    answers = 0

    def read():
        nonlocal answers
        while answers < FRAMES:
            assert mallory.stream.read().header is not None
            answers += 1

    reader = threading.Thread(target=read)
    before = rss(place)
    mallory.socket.settimeout(300)
    with acting_as(MALLORY):
        reader.start()
        for number in range(FRAMES // BATCH):
            mallory.socket.sendall(batches[number % len(batches)])
            if number % 50 == 0:
                time.sleep(0)
        reader.join()
    goes_on()
    assert mallory.agent("mole")
    assert rss(place) < before + 300


def broken(chance):
    """Return bytes that are no frame."""
    noise = chance.randbytes(chance.randrange(1, 200))
    return chance.choice(
        (
            noise,
            framed(noise),
            framed(b"{}", noise),
            framed(b"[]"),
            framed(b'{"blobs":[5]}'),
            framed(b'{"blobs":[-1]}'),
            framed(b'{"blobs":' + b"[" * 60_000 + b"]" * 60_000 + b"}"),
            framed(b'{"blobs":[' + b"0," * 30 + b"0]}"),
            framed(b"[" * 60_000),
            framed(b'{"op":"\\ud800"}'),
            (2**32 - 1).to_bytes(4, "big") + noise,
            (MAX_FRAME - 4).to_bytes(4, "big") + (MAX_FRAME).to_bytes(4, "big"),
            bytes(8),
            bytes(200),
        )
    )


@pytest.mark.parametrize("is_greeted", [False, True])
def test_bytes_that_are_no_frame_end_the_connection(place, goes_on, is_greeted):
    chance = random.Random(6)  # noqa: S311  no secret
    before, began = place.said().count("is closed"), time.monotonic()
    for number in range(BROKEN):
        if time.monotonic() - began > SECONDS:
            break
        connected = dialled(place.folder / "s", MALLORY)
        with acting_as(MALLORY), suppress(OSError):
            connected.sendall((HELLO if is_greeted else b"") + broken(chance))
            connected.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while connected.recv(1 << 16):
                pass
        connected.close()
        if number % 500 == 0:
            goes_on()
    place.wait_for(lambda: place.status()["connections"] <= 3, "the connections end")
    minutes = int((time.monotonic() - began) / 60) + 2  # that have begun
    assert place.said().count("is closed") - before <= minutes * MOST_WARNINGS  # no full disk


def test_reports_that_are_refused_fill_no_log(mallory, goes_on, place):
    before = len(place.said())
    report = framed(b'{"op":"outcome","quiet":true,"request_id":"%s"}' % (b"x" * 1000))
    with acting_as(MALLORY):
        for _ in range(20):
            mallory.socket.sendall(report * 500)
    assert mallory.agent("mole")
    goes_on()
    assert len(place.said()) < before + 200_000


# --- clients that are slow ------------------------------------------------------------------------


@impatient
def test_half_frames_end_with_their_connections(place, greeted, intrude, goes_on):
    silent = [greeted() for _ in range(50)]
    halves = [greeted() for _ in range(50)]
    begun = [intrude() for _ in range(4)]
    slow = greeted()
    with acting_as(MALLORY):
        for one in halves:
            one.sendall(HELLO[:11])
        for client in begun:
            client.socket.sendall((20 << 20).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"{}")
    waiting = [slow, *silent, *halves, *(client.socket for client in begun)]
    goes_on()
    at = 0
    for _ in range(600):
        with acting_as(MALLORY), suppress(OSError):
            at += slow.send(HELLO[at % len(HELLO) : at % len(HELLO) + 1]) if at < 12 else 0
        waiting = [one for one in waiting if not has_ended(one)]
        if not waiting:
            break
        time.sleep(0.1)
    assert waiting == []
    goes_on()
    idle = intrude()  # the twin: a client that has said hello may be silent
    assert not has_ended(idle.socket)


def has_ended(connected):
    connected.settimeout(0)
    try:
        return connected.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@impatient
def test_clients_that_do_not_read_hold_nobody_up(place, intrude, goes_on):
    data = b"x" * (8 << 20)
    writer = intrude()
    writer.got("runs.write", data, name="large")
    deaf = [intrude() for _ in range(20)]
    small = framed(orjson.dumps({"op": "approvals.altered", "now": 0}))
    for number, client in enumerate(deaf):
        client.socket.settimeout(0.2)
        with acting_as(MALLORY), suppress(TimeoutError):
            if number % 2:
                client.socket.sendall(framed(orjson.dumps({"op": "runs.read", "name": "large"})))
            else:
                client.socket.sendall(small * 30_000)
    waiting = intrude()
    waiting.tell("runs.write", data[: 100 << 10], name="other")
    waiting.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):  # large answers that are not read take all places
        waiting.stream.read()
    for _ in range(20):
        goes_on()
    assert rss(place) < 1500
    if FULL:  # the twin is each other client, which reads; six large answers wait for their turn
        few = len(deaf) - 8
        place.wait_for(lambda: place.status()["connections"] <= few, "the deaf go", seconds=120)


def test_large_frames_at_once_are_few(place, intrude, goes_on):
    begun, waiting = [intrude() for _ in range(LARGE_AT_ONCE)], intrude()
    for client in begun:
        with acting_as(MALLORY):
            client.socket.sendall((20 << 20).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"{}")
    assert waiting.agent("mole")  # the twin: a small frame does not wait
    time.sleep(0.2)  # the server has begun the large frames
    waiting.tell("runs.write", b"x" * (100 << 10), name="large")  # what a socket takes unread
    waiting.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        waiting.stream.read()
    begun[0].close()
    waiting.socket.settimeout(30)
    assert "error" not in waiting.stream.read().header
    for client in begun:
        client.close()
    clients = [intrude() for _ in range(40)]
    half = (20 << 20).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"{}" + b"x" * (1 << 20)
    for client in clients:
        client.socket.settimeout(0.05)
        with acting_as(MALLORY), suppress(TimeoutError):
            client.socket.sendall(half)
    goes_on()
    assert rss(place) < 1000


# --- more than a share ----------------------------------------------------------------------------


def test_connections_of_one_user_have_a_limit(place, goes_on):
    held, refused = [], 0
    while refused < 20:
        connected = dialled(place.folder / "s", MALLORY)
        held.append(connected)
        first = Stream(connected).read().header
        if "error" in first:
            assert first["error"]["code"] == "server.busy"
            refused += 1
        assert len(held) <= MOST_CONNECTIONS + 20
    goes_on()
    other = Intruder(place, VICTIM)
    assert other.error is None
    other.close()
    for connected in held:
        connected.close()

    def is_served():
        client = dialled(place.folder / "s", MALLORY)
        with client:
            return "error" not in Stream(client).read().header

    place.wait_for(is_served, "the place of connections that have ended")


def test_clients_of_one_user_have_a_limit(place, intrude, goes_on):
    def in_room():
        return place.status()["clients"] <= 2

    place.wait_for(in_room, "the clients of earlier tests are forgotten")
    clients = [intrude() for _ in range(257)]
    assert [client.error for client in clients[:256]] == [None] * 256
    assert clients[256].error["code"] == "server.busy"
    goes_on()
    assert intrude(VICTIM).error is None
    clients[0].ask("end")
    assert intrude().error is None  # the twin: the place of one that has gone
    clients[1].close()
    place.wait_for(lambda: intrude().error is None, "the place of one that was lost")


def test_clients_that_go_before_the_greeting_leave_no_session(place, greeted, intrude, goes_on):
    stays = intrude()
    for _ in range(100):
        gone = greeted()
        gone.shutdown(socket.SHUT_RD)  # the greeting can't be written
        with acting_as(MALLORY):
            gone.sendall(HELLO)
        gone.close()
    place.wait_for(lambda: place.status()["clients"] <= 3, "the clients that went are forgotten")
    goes_on()
    assert stays.agent("mole")  # the twin: a client that stays


def test_connections_of_one_client_have_a_limit(place, intrude, mallory, goes_on):
    handle = mallory.greeting["session"]
    others = [intrude(session=handle) for _ in range(64)]
    assert [other.error for other in others[:63]] == [None] * 63
    assert others[63].error["code"] == "server.busy"
    goes_on()


def test_ended_sessions_keep_no_connection(place, intrude):
    """A client that ends its session, and goes on sending, holds no place beside the limits."""
    for _ in range(300):
        client = intrude()
        assert client.error is None
        client.ask("end")
    assert all(client.is_closed() for client in [client])
    place.wait_for(lambda: place.status()["connections"] <= 2)


def test_calls_of_one_client_have_a_limit(mallory, intrude, goes_on):
    names = mallory.agent("mole"), mallory.tool("note")
    codes = [mallory.call(*names).header for _ in range(1030)]
    assert [code.get("step") for code in codes[:1024]] == ["run"] * 1024
    assert {code["error"]["code"] for code in codes[1024:]} == {"server.busy"}
    goes_on()
    other = intrude()
    assert other.call(other.agent("mole"), other.tool("note")).header["step"] == "run"


def test_memory_of_one_user_has_a_limit(place, mallory, intrude, goes_on):
    names = mallory.agent("mole"), mallory.tool("note")
    large = canonical.dumps({"text": [[] for _ in range(80_000)]})
    codes: set[str] = set()
    for _ in range(40):
        answer = mallory.call(*names, large).header
        codes.add(answer["error"]["code"] if "error" in answer else answer["step"])
    assert codes == {"run", "server.busy"}
    other = intrude()  # all of a user's clients have one share
    answer = other.call(other.agent("mole"), other.tool("note"), large).header
    assert answer["error"]["code"] == "server.busy"
    goes_on()
    assert rss(place) < 1500
    mallory.ask("end")
    client = intrude()  # the twin: the place of a client that has gone
    assert client.call(client.agent("mole"), client.tool("note")).header["step"] == "run"


def test_facts_of_one_client_have_a_limit(place, mallory, goes_on):
    names = mallory.agent("mole"), mallory.tool("slow", has_facts=True, gives=["x"])

    def told(facts):
        request_id = new_id()
        asked = mallory.call(*names, request_id=request_id).header
        if "error" in asked:
            return asked["error"]["code"]
        assert asked["step"] == "look_up"
        answer = mallory.ask("facts", facts, request_id=request_id, types={}).header
        return answer["error"]["code"] if "error" in answer else answer["step"]

    before = rss(place)
    assert told(b'{"x":[' + b",".join([b"[]"] * 1_000_000) + b"]}") == "frame.too_large"
    assert rss(place) < before + 100
    assert told(b'{"x":1}') == "run"  # the twin
    large = b'{"x":"' + b"x" * (200 << 10) + b'"}'
    assert {told(large) for _ in range(50)} == {"run", "server.busy"}
    goes_on()


def test_a_name_of_a_secret_that_has_no_end_fills_no_log(mallory, goes_on, place):
    request_id, before = new_id(), len(place.said())
    mallory.call(mallory.agent("mole"), mallory.tool("note"), request_id=request_id)
    for name in ("x" * 500_000, "x" * 20):
        assert mallory.code("secret", request_id=request_id, name=name) == "secret.unknown"
    assert len(place.said()) - before < 1_000
    assert mallory.code("secret", request_id=request_id, name="TOKEN") is None  # the twin
    goes_on()


def test_secrets_and_proofs_that_are_refused_fill_no_log(mallory, victim, goes_on, place):
    def refused(client: Any, agent: str, number: int) -> None:
        request_id, code = new_id(), client.code
        client.call(client.agent(agent), client.tool("note"), request_id=request_id)
        for _ in range(number):
            assert code("secret", request_id=request_id, name=f"no-{agent}") == "secret.unknown"
            asked = {"method": "GET", "url": f"https://{agent}.example/", "body_sha256": "0" * 64}
            assert code("proof", request_id=request_id, **asked) == "proof.refused"

    before, began = place.said().count(", tool note)"), time.monotonic()
    refused(mallory, "mole", 2 * MOST_WARNINGS)
    minutes = int((time.monotonic() - began) / 60) + 2  # that have begun
    assert place.said().count(", tool note)") - before <= minutes * MOST_WARNINGS
    refused(victim, "clerk", 1)  # the twin: another user's warnings are not crowded out
    assert "no-clerk" in place.said()
    goes_on()


@pytest.mark.parametrize(
    "said",
    [
        {"unbound": ["x"] * 100_000},
        {"site": ["x" * 200_000, None, None, None]},
        {"folder": "/" + "x" * 200_000},
        {"refusal": {"outcome": "deny", "code": "x", "reasons": [], "requirements": [],
                     "redactions": [["x"]] * 30_000}},
    ],
    ids=["unbound", "site", "folder", "refusal"],
)  # fmt: skip
def test_what_a_client_says_of_a_call_has_a_limit(mallory, goes_on, said):
    names = mallory.agent("mole"), mallory.tool("note")
    answer = mallory.call(*names, **said).header
    assert answer["error"]["code"] == "frame.too_large"
    assert mallory.call(*names, unbound=["x"] * 1_000).header["step"] == "run"  # the twin
    goes_on()


def test_names_of_injected_arguments_that_are_too_long_leave_a_denial_on_record(mallory, goes_on):
    names = mallory.agent("mole"), mallory.tool("note")
    answer = mallory.call(*names, unbound=["x"] * 10_000).header
    assert (answer["step"], answer["decision"]["code"]) == ("denied", "arguments.too_large")
    assert mallory.call(*names, unbound=["x"] * 1_000).header["step"] == "run"  # the twin
    goes_on()


def test_what_a_client_says_of_its_calls_is_counted(mallory, goes_on):
    names, site = (mallory.agent("mole"), mallory.tool("note")), ["x" * 100_000, None, None, None]
    codes: set[str] = set()
    for _ in range(120):
        answer = mallory.call(*names, site=site).header
        codes.add(answer["error"]["code"] if "error" in answer else answer["step"])
    assert codes == {"run", "server.busy"}
    goes_on()


def test_tools_of_one_client_have_a_limit(mallory, goes_on):
    codes: set[str | None] = set()
    for number in range(200):
        tool = described(f"t{number}", description="x" * 100_000)
        codes.add(mallory.code("tool", tool=tool))
    assert codes == {None, "server.busy"}
    goes_on()


def test_names_without_end_are_refused(mallory, place, goes_on):
    for members in (
        {"requires": [f"s{number}:x" for number in range(10_000)]},
        {"requires": ["x" * 100_000]},
        {"attributes": {f"a{number}": "x" for number in range(10_000)}},
    ):
        assert mallory.code("tool", tool=described("note", **members)) == "frame.too_large"
    assert mallory.code("tool", tool=described("x" * 2_000)) == "frame.too_large"
    assert mallory.code("tool", tool=described("note", origin="x" * 400_000)) == "frame.malformed"
    assert mallory.code("tool", tool=described("note", requires=["read"])) is None
    before = rss(place)
    for number in range(5_000):
        assert mallory.code("tool", tool=described(f"t{number}")) is None
    assert mallory.code("check_names") is None
    goes_on()
    assert rss(place) < before + 200


def test_a_server_without_descriptors_comes_back(own_place):
    place = own_place
    victim = Intruder(place, VICTIM)
    names = victim.agent("clerk"), victim.tool("note")
    assert victim.call(*names).header["step"] == "run"
    limits = resource.prlimit(place.server.pid, resource.RLIMIT_NOFILE)
    open_now = len(list(Path(f"/proc/{place.server.pid}/fd").iterdir()))
    resource.prlimit(place.server.pid, resource.RLIMIT_NOFILE, (open_now + 5, limits[1]))
    held = [dialled(place.folder / "s", MALLORY) for _ in range(40)]
    time.sleep(0.2)
    for one in held:
        one.close()
    resource.prlimit(place.server.pid, resource.RLIMIT_NOFILE, limits)
    other = Intruder(place, VICTIM)
    assert other.error is None
    assert victim.call(*names).header["step"] == "run"
    victim.close()
    other.close()


def test_a_flood_of_calls_of_one_user_does_not_stop_another(place, intrude, goes_on):
    clients = [intrude() for _ in range(12)]
    names = [(client.agent("mole"), client.tool("drop")) for client in clients]
    for client, (agent, tool) in zip(clients, names, strict=True):
        calls = [{**CALL, "agent": agent, "tool": tool, "request_id": new_id()} for _ in range(40)]
        with acting_as(MALLORY):
            client.socket.sendall(b"".join(encode(Frame(call, [b"{}"])) for call in calls))
    for _ in range(20):
        goes_on()
    for client in clients:
        for _ in range(40):
            assert client.stream.read().header["step"] == "denied"
