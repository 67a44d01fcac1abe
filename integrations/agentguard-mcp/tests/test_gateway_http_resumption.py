"""A stream of a server over HTTP whose connection ends before the answer is taken up again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from gateway_scene import code_of, gateway, settings, shown, until
from http_scene import call_of, served
from stream_scene import asked, fetched

from agentguard.adapters import DecodeError
from agentguard_mcp.gateway.upstream.resumption import TRIES
from agentguard_mcp.gateway.upstream.server_sent_events import MAX_ID, EventReader

TOOLS = [{"name": name, "description": "", "inputSchema": {}} for name in ("echo", "slow")]
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BEGIN = b"id: s-0\nretry: 10\ndata:\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*events: bytes, is_cut: bool = True) -> bytes:
    """Return an answer of events, which breaks off or ends in order."""
    return STREAM + b"".join(map(chunk, events)) + (b"" if is_cut else chunk(b""))


def refusal(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


class Server:
    """A server whose tool ``slow`` answers with ``first``, and its GETs with the ``rest`` by turns.

    Each is raw bytes, in which ``ANSWER`` stands for the answer to the call, or a function that
    writes by itself. ``standing`` has the answers to GETs that name no event. The connection of the
    call stays open until ``until`` is set. ``posts`` has what came by POST, ``gets`` the event ids
    of the GETs.
    """

    def __init__(self, first: bytes, *rest: bytes | Callable) -> None:
        self.first = first
        self.rest = list(rest)
        self.standing: list[bytes] = []
        self.until = asyncio.Event()
        self.until.set()
        self.posts: list[str] = []
        self.gets: list[str | None] = []
        self.times: list[float] = []
        self.answer = b""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(": ") for line in head[1:] if line]
        headers = {name.lower(): value for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        message = json.loads(await reader.readexactly(length)) if length else {}
        if head[0].startswith("GET"):
            self.gets.append(headers.get("last-event-id"))
            self.times.append(time.monotonic())
            replies = self.rest if "last-event-id" in headers else self.standing
            reply = replies.pop(0) if replies else refusal("405 Method Not Allowed")
            if callable(reply):
                await reply(writer)
            else:
                writer.write(reply.replace(chunk(b"ANSWER"), chunk(self.answer)))
        elif message:
            writer.write(self.posted(message))
            if self.posts[-1] == "slow":
                await self.until.wait()
        else:
            writer.write(refusal("204 No Content"))
        await writer.drain()
        writer.close()

    def posted(self, message: dict) -> bytes:
        """Return the answer to a message that came by POST."""
        name = message.get("params", {}).get("name", message.get("method", "a response"))
        self.posts.append(name)
        shown = {"params": message.get("params"), "text": "ran"}
        content = [{"type": "text", "text": json.dumps(shown)}]
        result = {"tools": TOOLS, "content": content, **HELLO, "serverInfo": {}}
        body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
        if name == "slow":
            self.answer = b"id: s-9\ndata: " + body + b"\n\n"
            self.times.append(time.monotonic())
            return self.first
        if "id" not in message or "method" not in message:
            return refusal("202 Accepted")
        kind = b"Content-Type: application/json\r\nConnection: close"
        return b"HTTP/1.1 200 OK\r\n%s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve at a free port, and return the URL."""
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        finally:
            server.close()


ANSWER = STREAM + chunk(b"ANSWER") + chunk(b"")


@asynccontextmanager
async def client_of(recorded, server, **changes):
    async with (
        server.served() as url,
        gateway(recorded, settings(command=(), url=url, **changes)) as client,
    ):
        await client.ask("initialize", HELLO)
        yield client


@asynccontextmanager
async def client_over_http(recorded, server):
    async with (
        server.served() as url,
        served(recorded, settings(command=(), url=url)) as running,
    ):
        yield await running.caller().begin()


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "closed"])
async def test_the_rest_of_a_stream_brings_the_answer_and_the_call_is_sent_once(recorded, is_cut):
    server = Server(stream(BEGIN, is_cut=is_cut), ANSWER)
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
    assert server.gets == ["s-0"]
    assert server.posts.count("slow") == 1
    assert recorded.outcomes() == ["ok"]
    assert len(recorded.calls()) == 1


async def test_a_stream_that_breaks_off_without_an_id_is_lost(recorded):
    server = Server(stream(b": begun\n\n"), ANSWER)
    async with client_of(recorded, server) as client:
        assert code_of(await client.call("slow")) == "tool.lost"
    assert (server.gets, server.posts.count("slow")) == ([], 1)
    assert recorded.outcomes() == ["unknown"]


async def test_an_event_that_is_cut_short_does_not_count(recorded):
    server = Server(stream(BEGIN, b"id: s-1\ndata: {"), ANSWER)
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
    assert server.gets == ["s-0"]


async def test_each_message_before_the_break_comes_once(recorded):
    notice = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"%s"}}\n\n'
    more = stream(b"id: s-2\n" + notice % b"b")
    server = Server(stream(BEGIN, b"id: s-1\n" + notice % b"a"), more, ANSWER)
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
        assert [one["params"]["data"] for one in client.notices] == ["a", "b"]
    assert server.gets == ["s-1", "s-2"]


async def test_a_server_that_has_forgotten_the_stream_is_asked_once(recorded):
    server = Server(stream(BEGIN), refusal("410 Gone"), ANSWER)
    async with client_of(recorded, server) as client:
        lost = await client.call("slow")
        assert code_of(lost) == "tool.lost"
    assert server.gets == ["s-0"]
    assert recorded.outcomes() == ["unknown"]


MOVED = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
NOBODYS = b'id: s-2\ndata: {"jsonrpc":"2.0","id":"nobody","result":{"content":[]}}\n\n'
ASKING = b'data: {"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{}}\n\n'
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]"


@pytest.mark.parametrize(
    "rest",
    [MOVED, stream(NOBODYS), stream(ASKING * 3), JSON, b"HTTP/1.1 204 No Content\r\n\r\n"],
    ids=["redirect", "another-answer", "questions", "no-message", "nothing"],
)
async def test_a_rest_without_the_answer_leaves_the_call_in_doubt_and_sends_nothing_twice(
    recorded, rest
):
    server, elsewhere = Server(stream(BEGIN)), Server(b"")
    async with elsewhere.served() as other, client_of(recorded, server) as client:
        server.rest.append(rest.replace(b"%s", other.encode()))
        assert code_of(await client.call("slow")) == "tool.lost"
        assert shown(await client.call("echo"))["text"] == "ran"
    assert (server.posts.count("slow"), elsewhere.gets, elsewhere.posts) == (1, [], [])
    assert sorted(recorded.outcomes()) == ["ok", "unknown"]


async def test_an_answer_that_comes_twice_counts_once(recorded):
    server = Server(stream(BEGIN), STREAM + chunk(b"ANSWER") + chunk(b"ANSWER") + chunk(b""))
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
        assert shown(await client.call("echo", text="b"))["params"]["name"] == "echo"
    assert recorded.outcomes() == ["ok", "ok"]


async def test_a_server_that_is_away_for_a_moment_is_asked_again(recorded):
    cut = b"HTTP/1.1 200 OK\r\n"
    server = Server(stream(BEGIN), refusal("503 Service Unavailable"), cut, ANSWER)
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
    assert server.gets == ["s-0"] * 3
    assert server.posts.count("slow") == 1


async def test_a_server_that_never_says_more_is_asked_some_times_and_not_for_ever(recorded):
    server = Server(stream(BEGIN), *[stream(is_cut=False)] * (TRIES + 5))
    async with client_of(recorded, server) as client:
        assert code_of(await client.call("slow")) == "tool.lost"
    assert server.gets == ["s-0"] * TRIES
    assert recorded.outcomes() == ["unknown"]


async def test_a_server_that_always_says_more_is_asked_until_the_time_is_over(recorded):
    more = [stream(b"id: s-%d\ndata:\n\n" % number) for number in range(100)]
    server = Server(stream(BEGIN), *more)
    async with client_of(recorded, server, timeout=1.0) as client:
        assert code_of(await client.call("slow")) == "tool.timeout"
    assert len(server.gets) <= 20
    assert recorded.outcomes() == ["unknown"]


async def test_the_gateway_waits_as_long_as_the_server_says(recorded):
    server = Server(stream(b"id: s-0\nretry: 300\ndata:\n\n"), ANSWER)
    async with client_of(recorded, server) as client:
        assert shown(await client.call("slow"))["text"] == "ran"
    assert server.times[1] - server.times[0] >= 0.3


async def test_an_event_that_is_too_long_ends_the_call(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.http.MAX_LINE", 10_000)
    server = Server(stream(BEGIN), stream(b"data: " + b"x" * 20_000 + b"\n\n"), ANSWER)
    async with client_of(recorded, server) as client:
        assert code_of(await client.call("slow")) == "tool.lost"
    assert server.gets == ["s-0"]


async def test_a_call_that_is_given_up_is_not_asked_for_again(recorded):
    server = Server(STREAM + chunk(BEGIN), ANSWER)
    server.until.clear()
    async with client_of(recorded, server) as client:
        client.send("tools/call", {"name": "slow", "arguments": {}}, id="c")
        await until(lambda: "slow" in server.posts)
        client.send("notifications/cancelled", {"requestId": "c"})
        await until(lambda: "notifications/cancelled" in server.posts)
        server.until.set()
        await asyncio.sleep(0.3)
    assert server.gets == []
    assert recorded.outcomes() == ["unknown"]


async def test_a_stream_of_revision_2026_07_28_is_not_resumed(recorded):
    server = Server(stream(BEGIN), ANSWER)
    async with server.served() as url, gateway(recorded, settings(command=(), url=url)) as client:
        assert code_of(await client.call("slow", _meta=MODERN)) == "tool.lost"
    assert server.gets == []


async def test_the_stream_of_a_get_is_resumed_too(recorded):
    notice = b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
    server = Server(b"", stream(b"id: g-2\n" + notice))
    server.standing.append(stream(b"id: g-1\n" + notice))
    async with client_of(recorded, server) as client:
        client.send("notifications/initialized")
        for _ in range(2):
            assert (await client.next())["method"] == "notifications/tools/list_changed"
    assert server.gets[:2] == [None, "g-1"]


async def test_a_client_over_http_comes_again_where_the_server_wants_to_be_asked_again(recorded):
    held = asyncio.Event()

    async def after_a_while(writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.write(STREAM + chunk(server.answer) + chunk(b""))

    server = Server(stream(BEGIN, is_cut=False), after_a_while)
    async with client_over_http(recorded, server) as client:
        async with asked(client, call_of("slow")) as events:
            begin = await events.next()
            assert await events.rest() == []
        held.set()
        status, (answer,) = await fetched(client, begin.identifier)
        assert (status, shown(answer["result"])["text"]) == (200, "ran")
    assert (server.gets, server.posts.count("slow")) == ([None, "s-0"], 1)
    assert recorded.outcomes() == ["ok"]


async def test_a_client_over_http_keeps_its_connection_where_that_of_the_server_breaks(recorded):
    server = Server(stream(BEGIN), ANSWER)
    async with (
        client_over_http(recorded, server) as client,
        asked(client, call_of("slow")) as events,
    ):
        assert (await events.next()).message is None
        (answer,) = await events.rest()
        assert shown(answer["result"])["text"] == "ran"
    assert (server.gets, server.posts.count("slow")) == ([None, "s-0"], 1)


# --- events ---------------------------------------------------------------------------------------


def read_in(*parts: bytes) -> EventReader:
    reader = EventReader(1_000)
    for part in parts:
        reader.feed(part)
    return reader


def test_a_reader_knows_the_last_id_and_the_time_to_wait():
    reader = read_in(b"id: a\nretry: 20\nda", b"ta: x\n\nid:b\ndata:\n\n", b"id: c\ndata: y\n")
    assert (reader.last_id, reader.retry) == ("b", 20)
    assert read_in(b"id: a\ndata: x\n\n", b"data: y\n\n").last_id == "a"
    assert read_in(b"id: a\ndata: x\n\n", b"id\ndata: y\n\n").last_id is None
    assert EventReader(10, "before").last_id == "before"


@pytest.mark.parametrize(
    "identifier", [b"a\x00b", "ä".encode(), b"a b", b" ", b"x" * (MAX_ID + 1), b"\x7f"]
)
def test_an_id_that_no_header_can_hold_does_not_count(identifier):
    good = EventReader(5_000)
    good.feed(b"id: " + b"x" * MAX_ID + b"\ndata: x\n\n")
    assert good.last_id == "x" * MAX_ID
    good.feed(b"id: " + identifier + b"\ndata: x\n\n")
    assert good.last_id is None


@pytest.mark.parametrize("retry", [b"-1", b"1.5", b"1e3", b"", b"9" * 10, b"9" * 5_000])
def test_a_time_that_is_no_number_of_milliseconds_does_not_count(retry):
    reader = EventReader(10_000)
    reader.feed(b"retry: 30\nretry: " + retry + b"\n\n")
    assert reader.retry == 30


def test_an_event_that_is_too_long_is_refused_with_ids_too():
    with pytest.raises(DecodeError):
        read_in(b"id: a\ndata: " + b"x" * 2_000)
