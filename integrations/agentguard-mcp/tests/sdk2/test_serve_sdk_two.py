"""A gateway over HTTP between a client of the SDK 2 and a server of the SDK 2, in both eras."""

from __future__ import annotations

import asyncio
import sys

import pytest
from mcp import Client
from mcp_types import ElicitResult

from agentguard import Decision
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import EndpointSettings, Settings
from agentguard_mcp.gateway.http.server import serve_http

SERVER = """
import asyncio
from typing import Annotated
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from pydantic import BaseModel

server = MCPServer("notes")

class Name(BaseModel):
    name: str

async def who(ctx: Context) -> Elicit[Name]:
    return Elicit("Who?", Name)

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

@server.tool()
async def count(ctx: Context) -> str:
    "Report progress."
    for n in range(3):
        await ctx.report_progress(n + 1, 3, f"step {n}")
    return "counted"

@server.tool()
async def greet(answer: Annotated[Name, Resolve(who)]) -> str:
    "Greet whom the client names."
    return f"hello {answer.name}"

@server.resource("notes://today")
def today() -> str:
    return "water the plants"

server.run("stdio")
"""


@pytest.fixture
async def url():
    recorded = RecordedGuard.make()
    recorded.decide = lambda call: (
        Decision.allow() if call["args"].get("a", 0) < 10 else Decision.deny("only small numbers")
    )
    command = (sys.executable, "-c", SERVER)
    settings = Settings("notes", command, "assistant", rounds=("greet",))
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    work = serve_http(recorded.guard, settings, EndpointSettings(), stop, ready.set_result)
    serving = asyncio.create_task(work)
    yield (await asyncio.wait_for(ready, 20)).url
    stop.set()
    await serving
    recorded.require_sound()
    recorded.guard.close()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_calls_are_decided_and_all_else_passes(mode, url):
    steps = []

    async def progress(done, total, text):
        steps.append((done, total, text))

    async def name(_context, _request):
        return ElicitResult(action="accept", content={"name": "alice"})

    talking = Client(url, mode=mode, elicitation_callback=name)
    async with talking as client, Client(url, mode=mode) as other:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        allowed, denied = await asyncio.gather(
            client.call_tool("add", {"a": 1, "b": 2}), other.call_tool("add", {"a": 11, "b": 2})
        )
        counted = await client.call_tool("count", {}, progress_callback=progress)
        greeted = await client.call_tool("greet", {})
        read = await client.read_resource("notes://today")
        assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
    assert listed == ["add", "count", "greet"]
    assert (allowed.is_error, allowed.content[0].text) == (False, "3")
    assert (denied.is_error, denied.meta["dev.agentguard/code"]) == (True, "policy.denied")
    assert (counted.content[0].text, len(steps)) == ("counted", 3)
    assert greeted.content[0].text == "hello alice"
    assert read.contents[0].text == "water the plants"
