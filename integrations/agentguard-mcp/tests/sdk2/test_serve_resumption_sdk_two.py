"""Connections of the SDK 2 break in the middle of a call: the answer comes, and the call runs once.

The client of the SDK comes again to the gateway, and the gateway comes again to the server of the
SDK. The test plays a proxy, which breaks the connections.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from http_serving import listening
from mcp import Client
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventMessage, EventStore

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import EndpointSettings, Settings
from agentguard_mcp.gateway.http.server import serve_http


class Proxy:
    """Passes bytes to ``port`` of this machine, until ``cut`` breaks all connections."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the bytes of one connection on, in both directions."""
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, back]
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    def cut(self) -> None:
        """Break all connections."""
        while self._writers:
            self._writers.pop().transport.abort()

    @asynccontextmanager
    async def served(self):
        """Listen at a free port, and return the URL of an MCP server there."""
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        finally:
            server.close()
            self.cut()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on in one direction."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Store(EventStore):
    """Keeps the events of the SDK's server in memory."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    async def store_event(self, stream_id, message):
        """Keep an event, and return its id."""
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id, send_callback):
        """Send what follows an event on its stream."""
        stream = self.events[int(last_event_id) - 1][0]
        for number, (one, message) in enumerate(self.events, 1):
            if one == stream and number > int(last_event_id) and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Tools:
    """A server with one tool, which waits until ``go`` is set; ``ran`` counts its runs."""

    def __init__(self) -> None:
        self.ran = 0
        self.go = asyncio.Event()
        self.server = MCPServer("notes")

        @self.server.tool()
        async def slow(ctx: Context) -> str:
            """Take a while."""
            self.ran += 1
            await ctx.report_progress(1, 2)
            await self.go.wait()
            return "done"


@asynccontextmanager
async def serving_here(app):
    """Serve an application on the loop of the test."""
    bound, url = listening()
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([bound]))
    try:
        yield url
    finally:
        server.should_exit = True
        await task
        bound.close()


@asynccontextmanager
async def gateway(recorded, url, public=None):
    """Serve a gateway in front of ``url``; return its port."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = Settings("notes", (), "assistant", url=url)
    endpoint = EndpointSettings(url=public)
    work = serve_http(recorded.guard, settings, endpoint, stop, ready.set_result)
    task = asyncio.create_task(work)
    try:
        yield (await asyncio.wait_for(ready, 20)).port
    finally:
        stop.set()
        await task


@pytest.mark.parametrize("where", ["client", "server", "both", "nowhere"])
async def test_a_call_survives_broken_connections_and_runs_once(where):
    recorded, tools, in_front, behind = RecordedGuard.make(), Tools(), Proxy(), Proxy()
    app = tools.server.streamable_http_app(event_store=Store(), retry_interval=50)
    begun = asyncio.Event()

    async def progress(_done, _total, _text):
        begun.set()

    async with serving_here(app) as url, behind.served() as hidden, in_front.served() as public:
        behind.port = int(url.split(":")[2].split("/")[0])
        async with (
            gateway(recorded, hidden, public) as in_front.port,
            Client(public, mode="legacy") as client,
            asyncio.timeout(20),
        ):
            work = client.call_tool("slow", {}, progress_callback=progress)
            calling = asyncio.create_task(work)
            await begun.wait()
            if where in ("server", "both"):
                behind.cut()
            if where in ("client", "both"):
                in_front.cut()
            await asyncio.sleep(0.1)
            tools.go.set()
            assert (await calling).content[0].text == "done"
    assert tools.ran == 1
    assert recorded.outcomes() == ["ok"]
    assert len(recorded.calls()) == 1
    recorded.require_sound()
    recorded.guard.close()
