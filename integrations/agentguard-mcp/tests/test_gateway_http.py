"""The gateway in front of a server over HTTP: a real one of the SDK, and hostile ones."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from certificates import Authority
from gateway_scene import code_of, gateway, settings, shown, until
from http_scene import served
from mcp.server.fastmcp import Context, FastMCP

from agentguard import ConfigError, Decision
from agentguard.adapters import DecodeError
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import list_tools
from agentguard_mcp.gateway.upstream.concealed import MARK
from agentguard_mcp.gateway.upstream.server_sent_events import EventReader

HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"sampling": {}},
    "clientInfo": {"name": "test", "version": "1"},
}
TOOLS = [{"name": "echo", "description": "Echo.", "inputSchema": {"type": "object"}}]


def over(url: str, **changes):
    return settings(command=(), url=url, **changes)


# --- a server of the SDK --------------------------------------------------------------------------


@asynccontextmanager
async def sdk_server() -> AsyncIterator[str]:
    """Serve three tools with FastMCP, and return the URL."""
    server = FastMCP("notes")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    async def roots(ctx: Context) -> str:
        """Ask the client for its roots."""
        await ctx.info("asking")
        return str(len((await ctx.session.list_roots()).roots))

    app = server.streamable_http_app()
    served = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(served.serve())
    while not served.started:  # noqa: ASYNC110  uvicorn tells nobody
        await asyncio.sleep(0.01)
    port = served.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        served.should_exit = True
        await serving


@pytest.mark.slow("it imports the server of the SDK")
async def test_calls_on_a_server_of_the_sdk_are_decided_and_its_requests_pass(recorded):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"].get("a") == 13 else Decision.allow()
    )
    async with sdk_server() as url:
        pins = await asyncio.to_thread(list_tools, over(url))
        async with gateway(recorded, over(url, pins=pins)) as client:
            hello = await client.ask("initialize", HELLO)
            assert hello["result"]["serverInfo"]["name"] == "notes"
            client.send("notifications/initialized")
            assert await client.tools() == ["add", "roots"]
            call = {"name": "add", "arguments": {"a": 1, "b": 2}}
            added = await client.ask("tools/call", call)
            assert added["result"]["content"][0]["text"] == "3"
            call["arguments"] = {"a": 13, "b": 2}
            assert code_of((await client.ask("tools/call", call))["result"]) == "policy.denied"
            client.send("tools/call", {"name": "roots", "arguments": {}}, id="r")
            while (asked := await client.next()).get("method") != "roots/list":
                assert asked["method"] == "notifications/message"
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}
            client.write(json.dumps(answer).encode())
            assert (await client.answer("r"))["result"]["content"][0]["text"] == "0"
    assert recorded.outcomes() == ["ok", "ok"]


# --- a server that the test plays -----------------------------------------------------------------


class Http:
    """A server of HTTP/1.1 that answers each request with what ``reply`` returns: raw bytes."""

    def __init__(self, reply: Callable[[dict[str, str], dict], bytes]) -> None:
        self.reply = reply
        self.seen: list[dict[str, str]] = []
        self.methods: list[str] = []
        self.params: list[dict] = []
        self.pauses: list[float] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, after the next of the pauses, and close the connection."""
        if self.pauses:
            await asyncio.sleep(self.pauses.pop(0))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(": ") for line in head[1:] if line]
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        message = json.loads(body) if body else {}
        self.seen.append(headers)
        if message:
            self.params.append(message.get("params", {}))
        self.methods.append(f"{head[0].split()[0]} {message.get('method', '')}")
        writer.write(self.reply(headers, message))
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve at a free port, and return the URL."""
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.close()
            await server.wait_closed()


def response(body: bytes, kind: str = "application/json", status: str = "200 OK", *more: str):
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


def answer_to(message, **result):
    return json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()


def honest(_headers, message):
    """Answer as an honest server does."""
    method = message.get("method")
    if method == "tools/list":
        return response(answer_to(message, tools=TOOLS))
    if method == "tools/call":
        text = json.dumps({"params": message["params"], "text": "", "environment": []})
        data = answer_to(message, content=[{"type": "text", "text": text}], isError=False)
        return response(
            b": hello\r\nid: 1\r\ndata: \r\n\r\nevent: message\r\ndata: " + data + b"\r\n\r\n",
            "text/event-stream",
        )
    if method == "initialize":
        data = answer_to(message, protocolVersion="2025-06-18", capabilities={}, serverInfo={})
        return response(data, "application/json", "200 OK", "Mcp-Session-Id: s-1")
    if "id" not in message:
        return response(
            b"", "text/plain", "405 Method Not Allowed" if not message else "202 Accepted"
        )
    return response(answer_to(message))


def dishonest(method, raw):
    """Return a server that is honest but for one method."""
    return Http(
        lambda headers, message: (
            raw if message.get("method") == method else honest(headers, message)
        )
    )


async def test_the_session_the_revision_and_the_token_go_with_each_request(tmp_path):
    file = tmp_path / "token"
    file.write_text("t0ken-of-tickets")
    file.chmod(0o600)
    recorded = RecordedGuard.make(secrets={"TICKETS": {"file": str(file), "tools": ["mcp:start"]}})
    server = Http(honest)
    async with server.served() as url, gateway(recorded, over(url, bearer="TICKETS")) as client:
        await client.ask("initialize", HELLO)
        client.send("notifications/initialized")
        meta = {"dev.agentguard/token": "of the client"}
        received = shown(await client.call("echo", "a", _meta=meta))["params"]
        assert received == {"name": "echo", "arguments": {"text": "a"}}
        received = shown(await client.call("echo", "a t0ken-of-tickets"))["params"]
        assert received["arguments"] == {"text": f"a {MARK}"}
    assert server.methods[0] == "POST initialize"
    assert server.methods[-1] == "DELETE "
    assert {seen["authorization"] for seen in server.seen} == {"Bearer t0ken-of-tickets"}
    assert {seen.get("mcp-session-id") for seen in server.seen[1:]} == {"s-1"}
    assert {seen.get("mcp-protocol-version") for seen in server.seen[1:]} == {"2025-06-18"}
    assert recorded.policy_inputs[0]["args"]["url"] == url
    recorded.guard.close()


async def test_a_modern_request_has_its_method_and_its_name_in_headers(recorded):
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    server = Http(honest)
    async with server.served() as url, gateway(recorded, over(url)) as client:
        shown(await client.call("echo", "a", _meta=meta))
        await client.ask("prompts/get", {"name": "é", "_meta": meta})
    listed, called, got = server.seen
    assert (listed["mcp-method"], "mcp-name" in listed) == ("tools/list", False)
    assert (called["mcp-method"], called["mcp-name"]) == ("tools/call", "echo")
    assert got["mcp-name"] == "=?base64?w6k=?="
    assert called["mcp-protocol-version"] == "2026-07-28"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (
            response(
                b"", "text/plain", "307 Temporary Redirect", "Location: https://evil.example/"
            ),
            "tool.lost",
        ),
        (response(b"", "text/plain", "500 Internal Server Error"), "tool.lost"),
        (response(b"secret words", "text/plain", "401 Unauthorized"), "tool.error"),
        (response(b"", "text/plain", "404 Not Found"), "tool.error"),
        (response(b"not json"), "tool.lost"),
        (response(b'{"jsonrpc":"2.0","id":99,"result":{}}'), "tool.lost"),
        (response(b'{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}'), "tool.lost"),
        (response(b"data: {}\n\n", "text/event-stream"), "tool.lost"),
        (response(b"data: " + b"x" * 2000, "text/event-stream"), "tool.lost"),
        (response(b"x" * 2000), "tool.lost"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
            "tool.lost",
        ),
        (b"no http\r\n\r\n", "tool.lost"),
    ],
    ids=range(12),
)
async def test_a_call_without_an_answer_of_mcp_is_in_doubt_or_refused_by_the_servers_word(
    recorded, monkeypatch, raw, code
):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.http.MAX_LINE", 1000)
    server = dishonest("tools/call", raw)
    async with server.served() as url, gateway(recorded, over(url)) as client:
        result = await client.call("echo", "a")
        assert code_of(result) == code
        text = result["content"][0]["text"]
        if (status := raw.split()[1].decode()) not in ("200", "http"):
            assert f"HTTP status {status}" in text
        assert "secret words" not in text
        assert "may have run" in text or "the server's own records" in text
        server.reply = honest
        assert shown(await client.call("echo", "b"))["text"] == ""
    expected = "unknown" if code == "tool.lost" else "error"
    assert recorded.outcomes() == [expected, "ok"]


@pytest.mark.parametrize("status", ["401 Unauthorized", "503 Service Unavailable"])
async def test_the_log_names_the_status_of_a_server_that_lists_no_tools(recorded, status, caplog):
    server = dishonest("tools/list", response(b"secret words", "text/plain", status))
    async with server.served() as url, gateway(recorded, over(url)) as client:
        assert code_of(await client.call("echo", "a")) == "tool.unlisted"
        assert f"which tools it has: HTTP status {status[:3]}" in caplog.text
        assert "secret words" not in caplog.text
        server.reply = honest
        assert shown(await client.call("echo", "a"))["text"] == ""


async def test_more_requests_at_once_than_the_gateway_sends_do_not_end_it(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.http.MAX_OPEN", 2)
    async with Http(honest).served() as url, gateway(recorded, over(url)) as client:
        for number in range(12):
            client.send("prompts/list", id=number)
        answers = [await client.next() for _ in range(12)]
        assert {one["id"] for one in answers} == {*range(12)}
        refused = [one["error"]["message"] for one in answers if "error" in one]
        assert refused
        assert all("too many requests at once" in text for text in refused)
        assert shown(await client.call("echo", "a"))["text"] == ""


async def test_a_token_that_no_header_can_hold_is_refused(tmp_path):
    for number, text in enumerate(("t0ken\n", "t0k\nen", "tökén")):
        file = tmp_path / str(number)
        file.write_text(text)
        file.chmod(0o600)
        recorded = RecordedGuard.make(secrets={"T": {"file": str(file), "tools": ["mcp:start"]}})
        async with Http(honest).served() as url:
            if number:
                with pytest.raises(ConfigError) as refused:
                    async with gateway(recorded, over(url, bearer="T")) as client:
                        await client.next()
                assert text not in str(refused.value)
            else:  # a line break at the end of a file is no part of the secret
                async with gateway(recorded, over(url, bearer="T")) as client:
                    assert shown(await client.call("echo", "a"))["text"] == ""
        recorded.guard.close()


async def test_a_server_that_is_not_there_gets_no_call(recorded, caplog):
    server = Http(honest)
    async with server.served() as url:
        pins = await asyncio.to_thread(list_tools, over(url))
    async with gateway(recorded, over(url, pins=pins, recheck=60)) as client:
        assert code_of(await client.call("echo", "a")) == "tool.unlisted"
        assert "no connection (ConnectError)" in caplog.text
        assert "did not answer" in (await client.ask("prompts/list"))["error"]["message"]


async def test_no_message_overtakes_a_notice_and_no_notice_overtakes_a_message(recorded):
    """The server reads what comes first only after all that would come at the same time."""
    server = Http(honest)
    server.pauses = [0.3, 0.0, 0.2]
    async with server.served() as url, gateway(recorded, over(url)) as client:
        client.send("notifications/roots/list_changed")
        for number in range(4):
            client.send("notifications/progress", {"progressToken": 1, "progress": number})
        client.send("prompts/list", {"cursor": "c"}, id=1)
        await client.answer(1)
        assert [one.get("progress") for one in server.params] == [None, *range(4), None]
        assert server.params[-1] == {"cursor": "c"}


async def test_a_server_that_takes_a_notice_late_does_not_stop_the_gateway(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.send_order.LONGEST_TURN", 0.1)
    server = Http(honest)
    server.pauses = [0.0, 0.6]
    async with server.served() as url, gateway(recorded, over(url)) as client:
        await client.ask("ping")
        client.send("notifications/progress", {"progressToken": 1, "progress": 1})
        assert shown(await client.call("echo", "a"))["text"] == ""
        assert len(server.params) == 3  # the ping, the list of the tools and the call
        await until(lambda: len(server.params) == 4)
        await client.ask("ping")


async def test_a_call_that_is_given_up_before_it_was_sent_never_runs(recorded):
    server, take_notice = Http(honest), asyncio.Event()
    handle = server.handle

    async def late_with_the_notice(reader, writer):
        if len(server.methods) == 2:  # the list of the tools and the first call have come
            await take_notice.wait()
        await handle(reader, writer)

    server.handle = late_with_the_notice
    async with server.served() as url, gateway(recorded, over(url, recheck=60.0)) as client:
        assert shown(await client.call("echo", "a"))["params"]["arguments"] == {"text": "a"}
        client.send("notifications/progress", {"progressToken": 1, "progress": 1})
        params = {"name": "echo", "arguments": {"text": "given up"}}
        client.send("tools/call", params, id="x")
        await until(lambda: len(recorded.calls()) == 2)
        await client.ask("tools/call", {"name": "nothing"})  # the call waits for its turn now
        client.send("notifications/cancelled", {"requestId": "x"})
        await client.ask("tools/call", {"name": "nothing"})  # the gateway has read the notice now
        take_notice.set()
        assert shown(await client.call("echo", "b"))["params"]["arguments"] == {"text": "b"}
    sent = [one["arguments"]["text"] for one in server.params if "arguments" in one]
    assert sent == ["a", "b"]
    assert recorded.outcomes() == ["ok", "unknown", "ok"]


async def test_a_server_whose_certificate_nobody_has_signed_gets_no_request(
    recorded, tmp_path, monkeypatch
):
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    async with served(recorded, certificate=certificate, key=key) as behind:
        async with gateway(recorded, over(behind.place.url)) as client:
            hello = await client.ask("initialize", HELLO)
            assert "no connection" in hello["error"]["message"]
            assert code_of(await client.call("echo", "a")) == "tool.unlisted"
        trusted = ssl.create_default_context(cafile=str(authority.file))
        monkeypatch.setattr("agentguard_mcp.gateway.upstream.http._certificates", lambda: trusted)
        async with gateway(recorded, over(behind.place.url)) as client:
            assert (await client.ask("initialize", HELLO))["result"]["serverInfo"]["name"] == "s"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_cut_at_their_ends_however_the_bytes_come(size):
    stream = b"\n: x\r\nid: 1\ndata: a\ndata:b\r\rdata: c\r\n\r\nretry: 5\n\ndata:  d\n\ndata: half"
    reader = EventReader(1000)
    chunks = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert [event for chunk in chunks for event in reader.feed(chunk)] == [b"a\nb", b"c", b" d"]
    with pytest.raises(DecodeError):
        EventReader(10).feed(b"data: 0123456789")
    with pytest.raises(DecodeError):
        EventReader(10).feed(b"data: 0\n" * 3)


@pytest.mark.parametrize("chunk", [b"\n" * (1 << 17), b": x\n" * (1 << 15)], ids=["ends", "notes"])
def test_a_stream_of_short_lines_does_not_hold_the_gateway_up(chunk):
    reader, begun = EventReader(1000), time.process_time()
    for _ in range(4):
        assert reader.feed(chunk) == []
    assert time.process_time() - begun < 4  # a reader that copies the rest for each line takes 60
    assert reader.feed(b"data: a\n\n") == [b"a"]


def test_a_long_line_in_short_pieces_does_not_hold_the_gateway_up():
    reader, begun = EventReader(1 << 21), time.process_time()
    for _ in range(1 << 14):
        assert reader.feed(b"x" * 100) == []
    assert time.process_time() - begun < 1  # a reader that looks at the whole line again takes 10
    assert reader.feed(b"\ndata: a\n\n") == [b"a"]


async def test_a_server_is_listened_to_once_however_often_the_client_says_it_is_ready(recorded):
    server = Http(honest)
    async with server.served() as url, gateway(recorded, over(url)) as client:
        await client.ask("initialize", HELLO)
        for _ in range(3):
            client.send("notifications/initialized")
        await client.ask("ping")
        await until(lambda: "GET " in server.methods)
        await client.ask("ping")
    assert server.methods.count("POST notifications/initialized") == 3
    assert server.methods.count("GET ") == 1


async def test_a_server_that_says_more_than_the_client_reads_does_not_fill_the_memory(recorded):
    server, told = Http(honest), []
    handle = server.handle
    notice = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "a" * 10**6}}
    event = b"data: " + json.dumps(notice).encode() + b"\n\n"

    async def tell_for_ever(reader, writer):
        if "POST notifications/initialized" not in server.methods:
            await handle(reader, writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(event)
                await writer.drain()
                told.append(event)
        writer.close()

    server.handle = tell_for_ever
    async with server.served() as url, gateway(recorded, over(url)) as client:
        await client.ask("initialize", HELLO)
        client.send("notifications/initialized")
        client.writer.transport.pause_reading()
        await until(lambda: len(told) > 1)
        size = 0
        while size != len(told):
            size = len(told)
            await asyncio.sleep(0.3)
        assert size < 40
        client.writer.transport.resume_reading()
        assert (await client.next())["params"] == notice["params"]
