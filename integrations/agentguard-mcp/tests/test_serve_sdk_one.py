"""A client of the SDK 1 over HTTP, and a command that serves it in a process of its own."""

from __future__ import annotations

import httpx
import pytest
from gateway_scene import code_of, settings
from http_scene import served
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from agentguard import Decision
from agentguard.testing import RecordedGuard


@pytest.mark.slow("it imports the client of the SDK")
async def test_a_client_of_the_sdk_one_makes_guarded_calls():
    recorded = RecordedGuard.make()
    recorded.decide = lambda call: (
        Decision.deny() if call["args"].get("text") == "bad" else Decision.allow()
    )
    async with (
        served(recorded, settings()) as gateway,
        httpx.AsyncClient(trust_env=False) as http,
        streamable_http_client(gateway.place.url, http_client=http) as (read, write, _session),
        ClientSession(read, write) as client,
    ):
        assert (await client.initialize()).serverInfo.name == "s"
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names[:2] == ["echo", "fail"]
        allowed = await client.call_tool("echo", {"text": "a"})
        assert allowed.isError is False
        denied = await client.call_tool("echo", {"text": "bad"})
        assert code_of(denied.model_dump(by_alias=True)) == "policy.denied"
    assert recorded.outcomes() == ["ok"]
    recorded.require_sound()
    recorded.guard.close()
