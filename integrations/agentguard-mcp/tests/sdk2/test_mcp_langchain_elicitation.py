"""An MCP server asks during a guarded call, and ``langchain.mcp`` interrupts the graph meanwhile.

The graph makes the call again once a person has answered. What was approved is paid once.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.mcp import MCPAdapter
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from mcp.client._memory import InMemoryTransport
from mcp.server.mcpserver import Context
from mcp_scene import SCOPE, low
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from agentguard import Decision, Requirement
from agentguard_langchain import GuardMiddleware
from agentguard_mcp.fastmcp import GuardedTransport

CONFIG: Any = {"configurable": {"thread_id": "t1"}}
YES = Command(resume={"responses": {"sure": {"action": "accept", "content": {"ok": True}}}})
NO = Command(resume={"responses": {"sure": {"action": "decline"}}})
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}


class Script(BaseChatModel):
    """A model that calls the tool once, and then says that it has done so."""

    said: Any

    @property
    def _llm_type(self) -> str:
        return "script"

    def _generate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next(self.said))])

    def bind_tools(self, tools: Any, **kwargs: Any) -> Script:
        return self


def messages() -> Iterator[AIMessage]:
    call = {"name": "transfer", "args": {"to": "ann"}, "id": "c1", "type": "tool_call"}
    yield AIMessage("", id="m1", tool_calls=[call])
    while True:
        yield AIMessage("done")


class Bank:
    """A graph with a guarded tool of a guarded server that asks before it transfers."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.rounds: list[str] = []
        self.transfers: list[str] = []

        @scene.server.tool()
        async def transfer(to: str, ctx: Context) -> str | InputRequiredResult:
            """Transfers money, and asks first."""
            self.rounds.append(to)
            answers = ctx.input_responses
            if not answers:
                asked = ElicitRequestFormParams(message="Sure?", requested_schema=SCHEMA)
                return InputRequiredResult(
                    input_requests={"sure": ElicitRequest(params=asked)}, request_state="asked"
                )
            if answers["sure"].action != "accept":
                return "nothing transferred"
            self.transfers.append(to)
            return f"transferred to {to}"

    @contextlib.asynccontextmanager
    async def graph(self) -> AsyncIterator[Any]:
        """Yield the graph, under a delegation of alice's."""
        scene = self.scene
        transport = GuardedTransport(lambda: InMemoryTransport(low(scene.server)), scene.audience)
        agent = scene.domain.new_agent("clerk")
        async with MCPAdapter(transport) as adapter:
            tools = [one for one in await adapter.list_tools() if one.name == "transfer"]
            with scene.domain.delegate("user:alice", scope=SCOPE, audience=[scene.audience]):
                yield create_agent(
                    Script(said=messages()),
                    tools,
                    middleware=[GuardMiddleware(agent)],
                    checkpointer=InMemorySaver(),
                )


def asked(state: Any) -> list[str]:
    """Return what the interrupts of a graph ask for: the server's answer, or an approval."""
    pauses = state.get("__interrupt__", ())
    return ["server" if "requests" in pause.value else "approval" for pause in pauses]


def answers(state: Any) -> list[str]:
    return [one.text for one in state["messages"] if one.type == "tool"]


GO = {"messages": [HumanMessage("go")]}


@pytest.fixture
def bank(make) -> Bank:
    return Bank(make("sdk", rounds=["transfer"]))


async def test_a_call_that_the_server_asks_about_runs_once_and_is_proved_in_each_round(bank):
    async with bank.graph() as graph:
        assert asked(await graph.ainvoke(GO, CONFIG)) == ["server"]
        assert bank.transfers == []
        state = await graph.ainvoke(YES, CONFIG)
        assert answers(state) == ["transferred to ann"]
        assert bank.rounds == ["ann"] * 3  # the resumed call begins with the first round
        old = [one.config async for one in graph.aget_state_history(CONFIG) if "tools" in one.next]
        again = await graph.ainvoke(None, old[-1])
    assert answers(again) == ["transferred to ann"]
    assert bank.transfers == ["ann"]
    assert len(bank.rounds) == 3
    agents, scene = bank.scene.agents, bank.scene
    assert agents.outcomes() == ["unknown", "ok", "not_run"]
    known = [call.invocation_sha256 for call in agents.calls()][:2]
    heard = [given["caller"]["invocation_sha256"] for given in scene.log.policy_inputs]
    assert heard == [known[0], known[1], known[1]]
    agents.require_sound()
    scene.log.require_sound()


async def test_a_declined_question_transfers_nothing(bank):
    async with bank.graph() as graph:
        await graph.ainvoke(GO, CONFIG)
        assert answers(await graph.ainvoke(NO, CONFIG)) == ["nothing transferred"]
    assert bank.transfers == []


async def test_an_approved_call_needs_an_approval_for_each_attempt_and_runs_once(bank):
    """An approval lets one attempt run, and the attempt ends where the server asks."""
    agents = bank.scene.agents
    agents.decide = lambda _given: Decision.require_approval(Requirement("a person pays"))
    async with bank.graph() as graph:
        assert asked(await graph.ainvoke(GO, CONFIG)) == ["approval"]
        agents.approve()
        assert asked(await graph.ainvoke(None, CONFIG)) == ["server"]
        assert asked(await graph.ainvoke(YES, CONFIG)) == ["approval"]
        assert bank.transfers == []
        assert len(bank.rounds) == 1  # nothing was sent without the second approval
        agents.approve()
        assert answers(await graph.ainvoke(None, CONFIG)) == ["transferred to ann"]
    assert bank.transfers == ["ann"]
    agents.require_sound()


async def test_a_rejected_second_attempt_transfers_nothing(bank):
    agents = bank.scene.agents
    agents.decide = lambda _given: Decision.require_approval(Requirement("a person pays"))
    async with bank.graph() as graph:
        await graph.ainvoke(GO, CONFIG)
        agents.approve()
        await graph.ainvoke(None, CONFIG)
        await graph.ainvoke(YES, CONFIG)
        inbox = agents.guard.approvals
        for request in inbox.pending():
            inbox.reject(request, agents.approver)
        (text,) = answers(await graph.ainvoke(None, CONFIG))
    assert "[approval.rejected]" in text
    assert bank.transfers == []
    assert len(bank.rounds) == 1
