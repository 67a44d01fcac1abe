"""A guarded tool of ``langchain.mcp`` proves its call, over the transport of a fastmcp client."""

from __future__ import annotations

from langchain.mcp import MCPAdapter
from mcp.client._memory import InMemoryTransport
from mcp_scene import SCOPE, low

from agentguard_langchain import guard_tools
from agentguard_mcp.fastmcp import GuardedTransport


async def test_a_guarded_tool_proves_its_call_and_gets_the_denial_of_the_server(scene):
    transport = GuardedTransport(lambda: InMemoryTransport(low(scene.server)), scene.audience)
    async with MCPAdapter(transport) as adapter:
        agent = scene.domain.new_agent("clerk")
        tools = {tool.name: tool for tool in guard_tools(await adapter.list_tools(), agent)}
        with scene.domain.delegate("user:alice", scope=SCOPE, audience=[scene.audience]):
            answer = await tools["pay"].ainvoke({"cents": 3})
            denied = await tools["pay"].ainvoke({"cents": 30})
    assert "paid 3 for user:alice" in str(answer)
    assert "too large [policy.denied]" in str(denied)
    assert scene.runs == [(3, "user:alice")]
    at_agent, at_server = scene.agents.calls(), scene.log.policy_inputs
    assert [call.invocation_sha256 for call in at_agent] == [
        given["caller"]["invocation_sha256"] for given in at_server
    ]
    assert {call.predicate["tool"]["origin"] for call in at_agent} == {scene.audience}
