"""A gateway in front of another gateway: each decides, and each asks for lists and for people."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager

from gateway_scene import LIMIT, gateway, serve, settings, shown

from agentguard import Decision
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway.messages import MAX_LINE

BRIDGE = """
import os, socket, sys, threading

there = socket.socket(socket.AF_UNIX)
there.connect(sys.argv[1])

def copy(read, write):
    while data := read(65536):
        write(data)

def answers():
    copy(there.recv, lambda data: os.write(1, data))
    os._exit(0)

threading.Thread(target=answers, daemon=True).start()
copy(lambda size: os.read(0, size), there.sendall)
"""
"""A program that stands at the end of a pipe for a gateway in the process of the test."""


@asynccontextmanager
async def two_gateways(tmp_path, outer, inner, given):
    """Run a gateway in front of a gateway with the settings ``given``."""

    ended = asyncio.Event()

    async def at(reader, writer):
        await serve(inner.guard, given, reader, writer)
        writer.close()
        ended.set()

    place = str(tmp_path / "s")
    async with await asyncio.start_unix_server(at, place, limit=MAX_LINE):
        command = (sys.executable, "-I", "-S", "-c", BRIDGE, place)
        async with gateway(outer, settings(command=command)) as client:
            yield client
        async with asyncio.timeout(LIMIT):
            await ended.wait()
    inner.guard.close()


async def test_a_call_is_decided_and_on_record_at_both_gateways(tmp_path, recorded, ran):
    inner = RecordedGuard.make()
    inner.decide = lambda call: (
        Decision.deny("no") if call["args"]["text"] == "bad" else Decision.allow()
    )
    given = settings(options={"ran": str(ran)})
    async with two_gateways(tmp_path, recorded, inner, given) as client:
        assert shown(await client.call("echo", "good"))["text"] == "good"
        denied = await client.call("echo", "bad")
        assert [one.decision for one in inner.calls()] == ["allow", "deny"]
    assert denied["isError"] is True
    assert "policy.denied" in denied["content"][0]["text"]
    assert ran.read_text() == "echo good\n"
    assert [one.decision for one in recorded.calls()] == ["allow", "allow"]


async def test_the_user_hears_of_a_call_that_waits_at_the_inner_gateway(tmp_path, recorded):
    inner = RecordedGuard.make()
    inner.decide = lambda _call: Decision.require_approval()
    given = settings(elicit=True, wait=20.0)
    async with two_gateways(tmp_path, recorded, inner, given) as client:
        capabilities = {"elicitation": {}}
        hello = {"protocolVersion": "2025-11-25", "capabilities": capabilities}
        await client.ask("initialize", hello)
        client.send("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id=9)
        assert (await client.next())["method"] == "elicitation/create"
        inner.approve()
        assert shown((await client.answer(9))["result"])["text"] == "a"
