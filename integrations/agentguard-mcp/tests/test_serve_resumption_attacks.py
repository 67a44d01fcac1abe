"""Attacks on streams that clients resume: each is stopped, beside its allowed twin."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import suppress

import pytest
from gateway_scene import LIMIT, settings, shown, until
from http_scene import call_of, served
from login_provider import ISSUER, Provider
from stream_scene import broken, fetched, listening, reply_to

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import OAuth
from agentguard_mcp.gateway.http.admission import Admitted
from agentguard_mcp.gateway.http.asgi import PIECE, Http
from agentguard_mcp.gateway.http.server_sent_events import SILENCE, send_events
from agentguard_mcp.gateway.http.stream import Item, Stream

URL = "https://mcp.acme.example/mcp"
SLOW = {"extra": ["slow"], "slow": 0.2}


async def test_an_event_of_another_session_gives_nothing(recorded):
    async with served(recorded) as gateway:
        owner, thief = await gateway.caller().begin(), await gateway.caller().begin()
        last = await broken(owner, call_of("echo", "a"))
        theirs = await broken(thief, call_of("echo", "b"))
        assert await fetched(thief, last) == (410, [])
        assert await fetched(owner, theirs) == (410, [])
        status, (answer,) = await fetched(owner, last)
        assert (status, shown(answer["result"])["text"]) == (200, "a")
        without = gateway.caller()
        assert (await fetched(without, last))[0] == 405
        without.headers["mcp-session-id"] = "made-up"
        assert (await fetched(without, last))[0] == 404


async def test_an_event_that_was_never_sent_gives_nothing(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("echo", "a"))
        name = last.partition("-")[0]
        for event in (
            "",
            "0",
            "x" * 10_000,
            name,
            f"{name}-",
            f"{name}-2",
            f"{name}--1",
            f"{name}-00",
            f"{name}-1e0",
            f"{name}-\u0660",
            f"{name}-99999999999999999999",
            f"{'0' * 32}-0",
            f"{name.upper()}-0",
        ):
            assert await fetched(client, event.encode()) == (410, []), event
        twice = [*client.headers.items(), ("last-event-id", last), ("last-event-id", last)]
        refused = await client.http.get(client.url, headers=twice)
        assert refused.status_code == 400
        assert (await fetched(client, last))[0] == 200


async def test_only_the_caller_of_a_session_resumes_its_streams(tmp_path):
    provider = Provider(tmp_path)
    recorded = RecordedGuard.make(
        agents={"assistant": {"max_scope": ["files:read"]}},
        issuers={"acme": provider.table(audience=[URL])},
    )

    def bearer(name, **claims):
        claims |= {"aud": URL, "scope": "files:read", "sub": name, "preferred_username": name}
        return {"authorization": f"Bearer {provider.token(**claims)}"}

    oauth = OAuth({ISSUER: ("files:read",)}, scopes=("files:read",))
    async with served(recorded, url=URL, oauth=oauth) as gateway:
        client = gateway.caller(host="mcp.acme.example", **bearer("alice"))
        client.url = f"http://127.0.0.1:{gateway.place.port}/mcp"
        await client.begin()
        last = await broken(client, call_of("echo", "a"))
        own = dict(client.headers)
        for other in (bearer("mallory"), bearer("alice", azp="another-program")):
            client.headers = {**own, **other}
            assert await fetched(client, last) == (404, [])
        client.headers = {**own, "authorization": ""}
        assert await fetched(client, last) == (401, [])
        ended = int(time.time()) - 3600
        client.headers = {**own, **bearer("alice", iat=ended - 60, exp=ended)}
        assert await fetched(client, last) == (401, [])
        client.headers = {**own, **bearer("alice", jti="a newer token")}
        status, (answer,) = await fetched(client, last)
        assert (status, shown(answer["result"])["text"]) == (200, "a")
    recorded.guard.close()


async def test_no_stream_shows_a_message_of_another_one(recorded):
    async with served(recorded, settings(options=SLOW)) as gateway:
        client = await gateway.caller().begin()
        slow = await broken(client, call_of("slow", "a", identifier="slow"))
        asking = await broken(client, call_of("ask", "who?", identifier="asking"), messages=1)
        assert (await client.post(reply_to({"id": "q1"}))).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok", "ok"])
        assert [one["id"] for one in (await fetched(client, slow))[1]] == ["slow"]
        assert [one["id"] for one in (await fetched(client, asking))[1]] == ["asking"]


@pytest.mark.parametrize("kept", [100, 1 << 20], ids=["beyond-the-bound", "within-the-bound"])
async def test_what_is_kept_for_a_client_that_is_away_has_a_bound(recorded, monkeypatch, kept):
    monkeypatch.setattr("agentguard_mcp.gateway.http.replay.MAX_KEPT", kept)
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("ask", "who?"), messages=1)
        assert (await client.post(reply_to({"id": "q1"}, "x" * 1_000))).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok"])  # kept or not, the call is on record
        status, messages = await fetched(client, last)
        assert (status, len(messages)) == ((410, 0) if kept == 100 else (200, 1))
        assert shown(await client.call("echo", "b"))["text"] == "b"


@pytest.mark.parametrize("most", [150_000, 1 << 20], ids=["beyond-the-bound", "within-the-bound"])
async def test_what_all_sessions_keep_has_a_bound_and_the_largest_loses_first(
    recorded, monkeypatch, most
):
    monkeypatch.setattr("agentguard_mcp.gateway.http.replay.MAX_KEPT_IN_ALL", most)
    async with served(recorded) as gateway:
        small, large, newest = [await gateway.caller().begin() for _ in range(3)]
        last = {}
        for client, size in ((small, 1_000), (large, 100_000), (newest, 90_000)):
            last[client.headers["mcp-session-id"]] = await broken(
                client, call_of("ask", "who?"), messages=1
            )
            told = reply_to({"id": "q1"}, "x" * size)
            assert (await client.post(told)).status_code == 202
            await until(lambda: len(recorded.outcomes()) == len(last))
        found = [await fetched(one, last[one.headers["mcp-session-id"]]) for one in (small, newest)]
        assert [(status, len(messages)) for status, messages in found] == [(200, 1)] * 2
        lost = await fetched(large, last[large.headers["mcp-session-id"]])
        assert (lost[0], len(lost[1])) == ((410, 0) if most == 150_000 else (200, 1))
    assert recorded.outcomes() == ["ok"] * 3


async def test_the_streams_that_are_kept_have_a_bound(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.replay.MAX_STREAMS", 2)
    async with served(recorded, settings(options={**SLOW, "slow": 0.05})) as gateway:
        client = await gateway.caller().begin()
        calls = [call_of("slow", str(i), identifier=i) for i in range(4)]
        ids = [await broken(client, call) for call in calls]
        await until(lambda: recorded.outcomes() == ["ok"] * 4)
        async with asyncio.timeout(LIMIT):
            for last in ids[:2]:
                while (await fetched(client, last))[0] != 410:  # noqa: ASYNC110  nobody tells when
                    await asyncio.sleep(0.01)
        assert [(await fetched(client, last))[0] for last in ids[2:]] == [200, 200]


async def test_a_client_that_opens_and_breaks_one_stream_again_and_again_runs_no_call(
    recorded, ran
):
    async with served(recorded, settings(options={**SLOW, "ran": str(ran)})) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("slow", "a"))
        for _ in range(50):
            async with listening(client, last) as events:
                assert events.answer.status_code == 200
        many = [asyncio.create_task(fetched(client, last)) for _ in range(10)]
        found = await asyncio.gather(*many)
        assert sum(len(messages) for _, messages in found) >= 1
    assert ran.read_text().splitlines().count("slow a") == 1
    assert recorded.outcomes() == ["ok"]


def begun(port, client, last):
    """Return a connection that asks for what follows an event, and reads nothing."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    made.connect(("127.0.0.1", port))
    given = {**client.headers, "accept": "text/event-stream", "last-event-id": last}
    given |= {"host": f"127.0.0.1:{port}", "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    made.sendall(f"GET /mcp HTTP/1.1\r\n{lines}\r\n".encode())
    made.setblocking(False)
    return made


async def read_all(connection):
    """Read a connection up to its end, and return how many bytes came."""
    loop, size = asyncio.get_running_loop(), 0
    with suppress(ConnectionResetError):
        async with asyncio.timeout(30):
            while data := await loop.sock_recv(connection, 1 << 20):
                size += len(data)
    return size


@pytest.mark.parametrize("pause", [1.2, 0.1], ids=["for-too-long", "for-a-moment"])
async def test_a_connection_ends_whose_client_takes_nothing(recorded, monkeypatch, pause):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("ask", "who?"), messages=1)
        told = reply_to({"id": "q1"}, '"' * 1_500_000)  # each takes four bytes in the answer
        assert (await client.post(told)).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok"])
        monkeypatch.setattr("agentguard.service.uvicorn_server.LONGEST", 0.5)
        with begun(gateway.place.port, client, last) as connection:
            await asyncio.sleep(pause)
            size = await read_all(connection)
        assert (size > 6_000_000) is (pause < 0.5)
        monkeypatch.setattr("agentguard.service.uvicorn_server.LONGEST", 60)
        status, (answer,) = await fetched(client, last)  # the answer itself is not lost
        assert (status, len(shown(answer["result"])["text"])) == (200, 1_500_000)


async def test_a_message_that_many_connections_do_not_read_is_in_memory_once():
    written: list[bytes] = []
    is_blocked, never = asyncio.Event(), asyncio.Event()

    async def send(event):
        written.append(event.get("body", b""))
        if len(written) > 3:
            is_blocked.set()
            await never.wait()

    line = json.dumps("x" * (2 << 20)).encode() + b"\n"
    stream = Stream(is_resumable=True)
    stream.put(Item(line))
    stream.end()
    http = Http({}, Admitted(None), never.wait, send)
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    unread = asyncio.create_task(send_events(http, stream.read(), gone, {}, SILENCE))
    await is_blocked.wait()
    assert 0 < sum(map(len, written)) <= 3 * PIECE
    unread.cancel()

    async def take(event):
        whole.append(event)

    whole: list[dict] = []
    taken = Http({}, Admitted(None), never.wait, take)
    await send_events(taken, stream.read(), gone, {}, SILENCE)
    parts = [event["body"] for event in whole[1:]]
    assert max(map(len, parts)) <= PIECE
    assert b"".join(parts).endswith(b"data: " + line + b"\n")
    assert [event["more_body"] for event in whole[1:]] == [True] * (len(parts) - 1) + [False]
