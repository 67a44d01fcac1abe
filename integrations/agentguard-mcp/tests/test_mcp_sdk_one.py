"""A client of the SDK 1 proves its calls: by itself, and through langchain-mcp-adapters."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from call_scene import CallScene
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp import ClientSession
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage, JSONRPCRequest

from agentguard import ConfigError, ProofError, UnguardedCallError
from agentguard.audit.kinds import parse_entry
from agentguard_langchain import guard_tools
from agentguard_mcp import guard_server, guard_transport

AUDIENCE = "mcp:payments"


@pytest.fixture
def scene(tmp_path):
    scene = CallScene(tmp_path)
    with scene.guard:
        yield scene


class Wire:
    """A server of the SDK 1, and the requests that it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict]] = []
        self.server = FastMCP("payments")

        @self.server.tool()
        def pay(cents: int) -> str:
            """Pay."""
            return f"paid {cents}"

    @asynccontextmanager
    async def transport(self):
        """Connect to the server in memory; with the third value of a transport over HTTP."""
        async with create_client_server_memory_streams() as (client, server):
            read, write = client
            low = self.server._mcp_server
            send = write.send

            async def noting(item):
                request = item.message.root
                if getattr(request, "id", None) is not None:
                    self.sent.append((request.method, request.params))
                await send(item)

            class Noting:
                def __getattr__(self, name):
                    return noting if name == "send" else getattr(write, name)

                async def __aenter__(self):
                    return self

                async def __aexit__(self, *_exception):
                    await write.aclose()

            async with anyio.create_task_group() as tasks:
                options = low.create_initialization_options()
                tasks.start_soon(low.run, *server, options)
                yield read, Noting(), lambda: "session"
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def session(self, audience: str = AUDIENCE):
        async with AsyncExitStack() as stack:
            guarded = guard_transport(self.transport(), audience)
            read, write, session_id = await stack.enter_async_context(guarded)
            assert session_id() == "session"
            session = await stack.enter_async_context(ClientSession(read, write))
            await session.initialize()
            yield session


async def within(scene, work, **terms):
    """Run an async function inside a guarded call for alice."""

    async def use():
        return await work()

    terms = {"scope": ["payments:write"], "audience": [AUDIENCE], **terms}
    with scene.guard.delegate("user:alice", **terms):
        return await scene.guard.new_agent("payer").acall(scene.guard.tool(name="use")(use))


async def test_each_call_has_a_proof_of_its_own(scene):
    wire = Wire()
    async with wire.session() as session:
        for _ in range(2):
            result = await within(scene, lambda: session.call_tool("pay", {"cents": 3}))
            assert result.content[0].text == "paid 3"
    calls = [params for method, params in wire.sent if method == "tools/call"]
    for params in calls:
        assert scene.receiver.verify("tools/call", params).principal == "user:alice"
    assert len({params["_meta"]["dev.agentguard/proof"] for params in calls}) == 2
    opening = dict(wire.sent)["initialize"]
    assert "dev.agentguard" not in str(opening)


async def test_nothing_is_sent_outside_of_a_guarded_call_nor_to_another_server(scene):
    wire = Wire()
    async with wire.session("mcp:other") as session:
        with pytest.raises(UnguardedCallError):
            await session.call_tool("pay", {"cents": 3})
        with pytest.raises(ProofError) as caught:
            await within(scene, lambda: session.call_tool("pay", {"cents": 3}))
        assert caught.value.code == "proof.audience"
        assert "tools/call" not in dict(wire.sent)
        await within(scene, lambda: session.call_tool("pay", {"cents": 3}), audience=["mcp:other"])
    assert "tools/call" in dict(wire.sent)


async def test_no_other_way_to_the_stream_sends_a_call_without_a_proof(scene):
    """A stream of anyio also has ``send_nowait``, and ``clone`` makes a second stream."""
    sending, receiving = anyio.create_memory_object_stream(10)

    @asynccontextmanager
    async def transport():
        async with sending, receiving:
            yield receiving, sending

    def item(method, **params):
        request = JSONRPCRequest(jsonrpc="2.0", id=1, method=method, params=params)
        return SessionMessage(JSONRPCMessage(request))

    call = item("tools/call", name="pay", arguments={"cents": 3})

    async def use():
        async with guard_transport(transport(), AUDIENCE) as (read, write):
            for stream in (write, write.clone()):
                with pytest.raises(UnguardedCallError, match="use send"):
                    stream.send_nowait(call)
                stream.send_nowait(item("ping"))
                await stream.send(call)
                await stream.aclose()
            return [read.receive_nowait().message.root for _ in range(4)]

    sent = await within(scene, use)
    assert [one.method for one in sent] == ["ping", "tools/call"] * 2
    for request in sent[1::2]:
        assert scene.receiver.verify("tools/call", request.params).principal == "user:alice"


async def test_an_argument_without_a_canonical_form_is_named_and_not_sent(scene):
    wire = Wire()
    async with wire.session() as session:
        with pytest.raises(ProofError, match="the argument 'cents'"):
            await within(scene, lambda: session.call_tool("pay", {"cents": 2**53}))
        assert "tools/call" not in dict(wire.sent)
        await within(scene, lambda: session.call_tool("pay", {"cents": 2**53 - 1}))
    scene.receiver.verify("tools/call", dict(wire.sent)["tools/call"])


async def test_a_guarded_tool_of_langchain_proves_its_call(scene):
    wire = Wire()
    async with wire.session() as session:
        agent = scene.guard.new_agent("payer")
        (tool,) = guard_tools(await load_mcp_tools(session), agent)
        with scene.guard.delegate("user:alice", scope=["payments:write"], audience=[AUDIENCE]):
            answer = await tool.ainvoke({"cents": 4})
    assert "paid 4" in str(answer)
    caller = scene.receiver.verify("tools/call", dict(wire.sent)["tools/call"])
    entries = [parse_entry(body) for _index, body in scene.guard.reader().entries()]
    (call,) = [one for one in entries if one.kind == "call"]
    assert (call.tool, caller.invocation_sha256) == ("pay", call.invocation_sha256)


def test_a_server_of_the_sdk_one_can_not_be_guarded(scene):
    with pytest.raises(ConfigError, match="no server that can be guarded"):
        guard_server(Wire().server, scene.guard, scene.receiver)
