"""What ends while people decide on an approval: the server behind a call, or the gateway."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from gateway_scene import LIMIT, Client, code_of, gateway, settings, shown, until

from agentguard import Decision
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import serve


@pytest.mark.parametrize("recheck", [0.0, 60.0])
async def test_a_call_that_waits_for_an_approval_ends_with_its_server(recorded, ran, recheck):
    recorded.decide = lambda call: (
        Decision.require_approval() if call["args"]["text"] == "a" else Decision.allow()
    )
    options = {"ran": str(ran), "leave": "logging/setLevel"}
    given = settings(options=options, wait=10 * LIMIT, recheck=recheck)
    async with gateway(recorded, given) as client:
        assert shown(await client.call("echo", "b"))["text"] == "b"
        client.send("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id="a")
        await until(recorded.guard.approvals.pending)
        client.send("logging/setLevel", id="l")
        result = (await client.answer("a"))["result"]
        assert code_of(result) == "tool.unreachable"
        assert "echo did not run" in result["content"][0]["text"]
        assert await client.next() == {}  # and the gateway ends
    assert len(recorded.guard.approvals.pending()) == 1  # for a later call
    assert ran.read_text() == "echo b\n"
    assert recorded.outcomes() == ["ok"]


@pytest.fixture
def asking(tmp_path):
    """A guard whose policy asks people about the start of a server, which gets a secret."""
    file = tmp_path / "token"
    file.write_text("t0ken")
    file.chmod(0o600)
    made = RecordedGuard.make(secrets={"T": {"file": str(file), "tools": ["mcp:start"]}})
    made.decide = lambda call: (
        Decision.require_approval() if call["action"] == "mcp:start" else Decision.allow()
    )
    yield made
    made.guard.close()


@asynccontextmanager
async def starting(asking, ran):
    """Run a gateway whose start waits for an approval; yield the client, a stop and the gateway."""
    given = settings(secrets={"TOKEN": "T"}, wait=10 * LIMIT, options={"ran": str(ran)})
    ours, theirs = socket.socketpair()
    streams = await asyncio.open_connection(sock=theirs)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(asking.guard, given, *streams, stop))
    client = Client(*await asyncio.open_connection(sock=ours))
    try:
        client.send("tools/call", {"name": "echo", "arguments": {"text": "early"}}, id=1)
        await until(asking.guard.approvals.pending)
        yield client, stop, serving
    finally:
        client.writer.close()
        async with asyncio.timeout(LIMIT):
            assert await serving == 0


@pytest.mark.parametrize("how", ["stop", "end of input"])
async def test_a_gateway_that_waits_for_the_approval_of_its_start_ends_when_told(asking, ran, how):
    async with starting(asking, ran) as (client, stop, serving):
        if how == "stop":
            stop.set()
        else:
            client.writer.write_eof()
        async with asyncio.timeout(LIMIT):
            assert await serving == 0
        assert await client.next() == {}
    assert not ran.exists()
    assert len(asking.guard.approvals.pending()) == 1


async def test_what_a_client_sends_before_the_start_is_approved_is_answered_afterwards(
    asking, tmp_path
):
    async with starting(asking, tmp_path / "ran") as (client, _stop, _serving):
        client.send("ping", id=2)
        asking.approve()
        assert shown((await client.answer(1))["result"])["text"] == "early"
        assert (await client.ask("ping"))["result"]["method"] == "ping"
    assert asking.outcomes() == ["ok", "ok"]
