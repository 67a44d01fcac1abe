"""Guarded servers over streamable HTTP: real sockets, both eras, and bytes that no SDK writes."""

from __future__ import annotations

import contextlib
import json

import httpx2
import pytest
from fastmcp import Client as FastClient
from http_serving import listening, serving
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_scene import MODES, code_of

from agentguard import UnguardedCallError
from agentguard_mcp import guard_transport
from agentguard_mcp.fastmcp import GuardedTransport


@contextlib.contextmanager
def running(kind, tmp_path, make):
    """Run a guarded server over HTTP under its URL, which is also its audience."""
    bound, url = listening()
    scene = make(kind, audience=url)
    app = scene.server.http_app() if kind == "fastmcp" else scene.server.streamable_http_app()
    with serving(app, bound):
        yield scene, url


@pytest.fixture(params=MODES)
def served(request, tmp_path, make):
    with running(request.param, tmp_path, make) as found:
        yield found


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_proved_call_over_http_runs_and_a_bare_one_does_not(served, mode):
    scene, url = served
    transport = guard_transport(streamable_http_client(url), url)
    async with Client(transport, mode=mode) as client:
        result = await scene.call(client, "pay", {"cents": 3})
        denied = await scene.call(client, "pay", {"cents": 30})
    assert result.content[0].text == "paid 3 for user:alice"
    assert code_of(denied) == "policy.denied"
    async with Client(url, mode=mode) as bare:
        assert code_of(await bare.call_tool("pay", {"cents": 3})) == "proof.missing"
    assert len(scene.runs) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_of_fastmcp_proves_its_calls(served, mode):
    scene, url = served
    transport = GuardedTransport(lambda: streamable_http_client(url), url)
    async with FastClient(transport, mode=mode) as client:
        with pytest.raises(UnguardedCallError):
            await client.call_tool("pay", {"cents": 3})
        for _ in range(2):
            result = await scene.within(lambda: client.call_tool("pay", {"cents": 3}))
            assert result.content[0].text == "paid 3 for user:alice"
        listed = await scene.within(client.list_tools, scope=["files:read"])
    assert {tool.name for tool in listed} == {"look", "fail"}
    assert len(scene.runs) == 2


async def posted(url: str, body: bytes) -> dict:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "pay",
    }
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, content=body, headers=headers)
    text = answer.text
    if "data:" in text:
        text = next(line[5:] for line in text.splitlines() if line.startswith("data:"))
    return json.loads(text)["result"]


async def test_a_repeated_key_changes_nothing_that_was_proved(make, tmp_path):
    """The SDK takes the last of two equal keys: what was proved is what runs, or nothing runs."""
    with running("sdk", tmp_path, make) as (scene, url):

        async def capture() -> bytes:
            params = await scene.capture("pay", {"cents": 3})
            whole = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
            return json.dumps(whole).encode()

        plain = await capture()
        assert plain.count(b'"cents": 3') == 1
        last_differs = plain.replace(b'"cents": 3', b'"cents": 3, "cents": 9')
        assert code_of(await posted(url, last_differs)) == "proof.request"
        first_differs = plain.replace(b'"cents": 3', b'"cents": 9, "cents": 3')
        assert code_of(await posted(url, first_differs)) is None
        two_params = (await capture()).replace(
            b'"params": {', b'"params": {"name": "look", "arguments": {}}, "params": {'
        )
        assert code_of(await posted(url, two_params)) is None
        assert code_of(await posted(url, await capture())) is None
    assert scene.runs == [(3, "user:alice")] * 3
