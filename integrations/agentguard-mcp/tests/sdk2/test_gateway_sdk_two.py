"""A client and a server of the SDK 2 with the gateway between them, in both eras."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import ElicitResult

SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("notes")

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

@server.resource("notes://today")
def today() -> str:
    return "water the plants"

server.run("stdio")
"""
GATEWAY = """
import asyncio, os, sys
from agentguard import Decision, Guard
from agentguard_mcp.gateway import Settings, environment, stdio

def policy(call):
    is_small = call["args"].get("a", 0) < 10
    return Decision.allow() if is_small else Decision.deny("only small numbers")

command = (sys.executable, "-c", sys.argv[1])
settings = Settings("notes", command, "assistant", environment=environment(os.environ))
with Guard.ephemeral(policy) as guard:
    asyncio.run(stdio._served(guard, settings, os.dup(0), os.dup(1)))
"""

ASKING = """
import asyncio, os, sys, threading, time
from agentguard import Decision, Guard
from agentguard_mcp.gateway import Settings, environment, stdio

def approve(guard, file):
    while not os.path.exists(file):
        time.sleep(0.02)
    for request in guard.approvals.pending():
        guard.approvals.vouch(request, "approve", principal="user:bob")

command = (sys.executable, "-c", sys.argv[1])
settings = Settings(
    "notes", command, "assistant", environment=environment(os.environ), wait=60, elicit=True
)
people = {"approvals": {"application": True}}
with Guard.ephemeral(lambda _call: Decision.require_approval(), config=people) as guard:
    threading.Thread(target=approve, args=(guard, sys.argv[2]), daemon=True).start()
    asyncio.run(stdio._served(guard, settings, os.dup(0), os.dup(1)))
"""


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_calls_are_decided_and_all_else_passes(mode, tmp_path):
    gateway = StdioServerParameters(command=sys.executable, args=["-c", GATEWAY, SERVER])
    with Path(tmp_path, "errors").open("w") as errors:  # noqa: ASYNC230  a file for the process
        async with Client(stdio_client(gateway, errlog=errors), mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["add"]
            allowed = await client.call_tool("add", {"a": 1, "b": 2})
            denied = await client.call_tool("add", {"a": 11, "b": 2})
            read = await client.read_resource("notes://today")
    assert (allowed.is_error, allowed.content[0].text) == (False, "3")
    assert (denied.is_error, denied.meta["dev.agentguard/code"]) == (True, "policy.denied")
    assert read.contents[0].text == "water the plants"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_user_hears_that_a_call_waits_for_an_approver_elsewhere(mode, tmp_path):
    approves = tmp_path / "approves"
    heard = []

    async def elicit(_context, params):
        heard.append(params.message)
        if len(heard) == 1:
            return ElicitResult(action="decline")
        approves.touch()  # the approver answers, elsewhere
        return ElicitResult(action="accept", content={})

    args = ["-c", ASKING, SERVER, str(approves)]
    gateway = StdioServerParameters(command=sys.executable, args=args)
    with Path(tmp_path, "errors").open("w") as errors:  # noqa: ASYNC230  a file for the process
        transport = stdio_client(gateway, errlog=errors)
        async with Client(transport, mode=mode, elicitation_callback=elicit) as client:
            declined = await client.call_tool("add", {"a": 1, "b": 2})
            approved = await client.call_tool("add", {"a": 1, "b": 2})
    assert (declined.is_error, declined.meta["dev.agentguard/code"]) == (True, "approval.pending")
    assert (approved.is_error, approved.content[0].text) == (False, "3")
    assert len(heard) == 2
    assert "agentguard approvals approve " in heard[0]
