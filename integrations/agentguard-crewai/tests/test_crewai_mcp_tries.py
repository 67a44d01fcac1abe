"""CrewAI's MCP client tries a slow call three times; behind the MCP gateway the tool runs once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from crewai.mcp.client import MCPClient
from crewai.mcp.transports.stdio import StdioTransport

SERVER = (
    Path(__file__).parents[2].joinpath("agentguard-mcp", "tests", "support", "scripted_server.py")
)
GATEWAY = """
import asyncio, json, os, sys
from agentguard import Decision, Guard
from agentguard_mcp.gateway import Settings, environment, stdio

settings = Settings("files", tuple(json.loads(sys.argv[1])), "assistant", recheck=60.0,
                    environment=environment(os.environ))
with Guard.ephemeral(lambda call: Decision.allow()) as guard:
    asyncio.run(stdio._served(guard, settings, os.dup(0), os.dup(1)))
"""


@pytest.mark.slow("CrewAI itself waits one and two seconds between its tries")
async def test_three_tries_of_a_slow_call_are_one_execution(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    options = {"ran": str(ran), "extra": ["slow"], "slow": 2.5}
    server = [sys.executable, "-I", "-S", str(SERVER), json.dumps(options)]
    transport = StdioTransport(
        command=sys.executable, args=["-c", GATEWAY, json.dumps(server)], env={"PATH": "/usr/bin"}
    )
    async with MCPClient(transport) as client:
        assert '"text": "a"' in await client.call_tool("echo", {"text": "a"})
        client.execution_timeout = 0.5  # type: ignore[assignment]  # a fraction of a second
        # the tries begin after 0, 1.5 and 4 seconds; the second one gives up before the answer
        answer = await client.call_tool("slow", {"text": "b"})
    assert '"text": "b"' in answer
    assert "The tool did not run again" in answer
    assert ran.read_text().splitlines()[-2:] == ["echo a", "slow b"]
