"""A request that a client gives up ends at a server over HTTP, too, in both eras of MCP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from gateway_scene import code_of, gateway, settings, shown, until

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
TOOLS = [{"name": name, "description": "", "inputSchema": {}} for name in ("echo", "hang")]
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Server:
    """A server whose tool ``hang`` and whose subscriptions send no answer.

    ``asked`` has the methods of all messages, and ``closed`` those of the requests without an
    answer whose connection the gateway has closed. A server that ``chats`` sends comments for ever
    in the place of no answer, and of the answer to a notice.
    """

    def __init__(self, *, chats: bool = False) -> None:
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.chats = chats

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, or wait until the other side closes the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r")[0] or 0)
        message = json.loads(await reader.readexactly(length)) if length else {}
        method, params = message.get("method", ""), message.get("params", {})
        self.asked.append(method)
        is_chat = self.chats and method.startswith("notifications/")
        if method == "subscriptions/listen" or params.get("name") == "hang" or is_chat:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: begun\n\n")
            with suppress(ConnectionError):
                await (self.chat(writer) if self.chats else reader.read())
            self.closed.append(method)
        elif "id" in message:
            shown = {"params": params, "text": params.get("arguments", {}).get("text")}
            content = [{"type": "text", "text": json.dumps(shown)}]
            result = {"tools": TOOLS, "content": content, **HELLO, "serverInfo": {}}
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
            kind = "Content-Type: application/json\r\nConnection: close"
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}\r\n\r\n{body}".encode())
        else:
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def chat(self, writer: asyncio.StreamWriter) -> None:
        """Send comments until the other side closes the connection."""
        while True:
            writer.write(b": still here\n\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve at a free port, and return the URL."""
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        finally:
            server.close()


@pytest.mark.parametrize("method", ["tools/call", "subscriptions/listen"])
async def test_the_stream_of_a_request_that_is_given_up_is_closed(recorded, method):
    server = Server()
    async with server.served() as url, gateway(recorded, settings(command=(), url=url)) as client:
        params = {"_meta": MODERN}
        if method == "tools/call":
            params |= {"name": "hang", "arguments": {"text": "a"}}
        client.send(method, params, id="c")
        await until(lambda: method in server.asked)
        assert shown(await client.call("echo", "b", _meta=MODERN))["text"] == "b"
        assert server.closed == []
        client.send("notifications/cancelled", {"requestId": "c"})
        await until(lambda: server.closed == [method])
        assert shown(await client.call("echo", "c", _meta=MODERN))["text"] == "c"
    assert "notifications/cancelled" not in server.asked
    given_up = ["unknown"] if method == "tools/call" else []
    assert sorted(recorded.outcomes()) == ["ok", "ok", *given_up]


async def test_requests_that_are_given_up_at_once_hold_up_no_other(recorded):
    server = Server()
    async with server.served() as url, gateway(recorded, settings(command=(), url=url)) as client:
        for number in range(50):
            client.send("prompts/list", {"_meta": MODERN}, id=f"list-{number}")
            client.send("notifications/cancelled", {"requestId": f"list-{number}"})
        client.send("notifications/roots/list_changed")
        await until(lambda: "notifications/roots/list_changed" in server.asked)
        assert shown(await client.call("echo", "b", _meta=MODERN))["text"] == "b"


async def test_a_server_with_a_session_is_told(recorded):
    server = Server()
    async with server.served() as url, gateway(recorded, settings(command=(), url=url)) as client:
        await client.ask("initialize", HELLO)
        client.send("tools/call", {"name": "hang", "arguments": {"text": "a"}}, id="c")
        await until(lambda: "tools/call" in server.asked)
        client.send("notifications/cancelled", {"requestId": "c"})
        await until(lambda: "notifications/cancelled" in server.asked)
    assert recorded.outcomes() == ["unknown"]


async def test_a_server_that_sends_comments_for_ever_keeps_no_connection(recorded):
    server = Server(chats=True)
    async with server.served() as url:
        given = settings(command=(), url=url, timeout=0.7)
        async with gateway(recorded, given) as client:
            await client.ask("initialize", HELLO)
            client.send("notifications/roots/list_changed")
            assert code_of(await client.call("hang", "a")) == "tool.timeout"
            told = ["notifications/cancelled", "notifications/roots/list_changed"]
            await until(lambda: sorted(server.closed) == [*told, "tools/call"])
            assert shown(await client.call("echo", "b"))["text"] == "b"
    assert recorded.outcomes() == ["unknown", "ok"]
