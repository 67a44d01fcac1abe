"""A deep agent, a sub-agent that it declares, and the general-purpose one that comes with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from deepagents import create_deep_agent
from langgraph.checkpoint.memory import InMemorySaver

from agentguard import verify_evidence
from agentguard_langchain import GuardMiddleware, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
BIG = ("pay", {"to": "ann", "cents": 500})
SMALL = ("pay", {"to": "cal", "cents": 5})
TOO_MUCH = ("pay", {"to": "eve", "cents": 50_000})


async def ran(graph, given, *, sync):
    return graph.invoke(given, CONFIG) if sync else await graph.ainvoke(given, CONFIG)


def task(kind, *calls):
    """What has a sub-agent make these calls."""
    return ("task", {"subagent_type": kind, "description": json.dumps(calls)})


class Deep:
    """A deep agent that is guarded as langchain-mcp.md says, its log, and what it has done."""

    def __init__(self, inbox, model, general=None):
        self.inbox = inbox
        self.child = inbox.guard.new_agent("clerk")
        clerk = {
            "name": "clerk",
            "description": "Pays.",
            "system_prompt": "Pay.",
            "tools": guard_tools(inbox.tools, self.child),
            "middleware": [GuardMiddleware(self.child)],
        }
        self.graph = create_deep_agent(
            model,
            tools=guard_tools(inbox.tools, inbox.agent),
            middleware=[GuardMiddleware(inbox.agent)],
            subagents=[clerk] if general is None else [clerk, general(inbox)],
            checkpointer=InMemorySaver(),
        )

    async def run(self, *calls, sync, resume=False):
        with self.inbox.guard.delegate("user:alice", scope=["pay"]):
            given = None if resume else self.inbox.asking(*calls)
            return await ran(self.graph, given, sync=sync)

    def calls(self):
        """Tool, answer and agent of each call, and the agents of its chain, the first one first."""
        names = {self.inbox.agent.id: "parent", self.child.id: "child"}
        found = []
        for call in self.inbox.log.calls():
            proof = self.inbox.guard.prove(call.predicate["invocation_id"])
            chain = verify_evidence(proof, self.inbox.guard.trust).chain
            assert (chain is not None, call.predicate["principal"]) == (True, "user:alice")
            path = [actor.removeprefix("agent:") for actor in chain.actors[1:]]
            found.append([call.tool, call.code or call.decision, names[call.agent], path])
        return found


@pytest.fixture
def deep(people, obedient):
    """Make deep agents."""

    def _deep(**options):
        return Deep(people(delegated=True), obedient, **options)

    return _deep


@SYNC
async def test_each_call_is_its_agents_and_has_its_chain(deep, sync):
    made = deep()
    calls = [SMALL, task("clerk", SMALL, TOO_MUCH), task("general-purpose", SMALL, TOO_MUCH)]
    state = await made.run(*calls, sync=sync)
    denied = "Denied: pay was not run. Reason: that is too much [policy.denied]"
    texts = [message.text for message in state["messages"] if message.type == "tool"]
    assert texts[0] == "paid 5 to cal"
    assert all(text.startswith(f"paid 5 to cal; {denied}") for text in texts[1:])
    assert made.inbox.paid == [("cal", 5)] * 3
    parent, child = ["parent", ["payer"]], ["child", ["payer", "clerk"]]
    assert sorted(made.calls()) == sorted(
        [
            ["pay", "allow", *parent],
            ["task", "allow", *parent],
            ["task", "allow", *parent],
            ["pay", "allow", *child],
            ["pay", "policy.denied", *child],
            # the general-purpose one is no agent of its own: it is the parent, and acts as such
            ["pay", "allow", *parent],
            ["pay", "policy.denied", *parent],
        ]
    )


@SYNC
@pytest.mark.parametrize("kind", ["clerk", "general-purpose"])
async def test_what_a_sub_agent_asks_reaches_the_top_and_runs_once(deep, sync, kind):
    made = deep()
    inbox = made.inbox
    paused = await made.run(task(kind, SMALL, BIG), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert [one["args"]["to"] for one in pause.value["action_requests"]] == ["ann"]
    assert ("ann", 500) not in inbox.paid
    (request,) = inbox.waiting
    assert (request.principal, request.agent_name) == (
        "user:alice",
        "clerk" if kind == "clerk" else "payer",
    )
    inbox.approve()
    state = await made.run(sync=sync, resume=True)
    texts = [message.text for message in state["messages"] if message.type == "tool"]
    assert texts == ["paid 5 to cal; paid 500 to ann"]
    assert sorted(inbox.paid) == [("ann", 500), ("cal", 5)]


@SYNC
async def test_a_rejection_reaches_the_sub_agent(deep, sync):
    made = deep()
    await made.run(task("clerk", BIG), sync=sync)
    made.inbox.reject(note="who is Ann?")
    state = await made.run(sync=sync, resume=True)
    texts = [message.text for message in state["messages"] if message.type == "tool"]
    assert "user:bob has rejected this call: who is Ann? [approval.rejected]" in texts[0]
    assert made.inbox.paid == []


@SYNC
@pytest.mark.parametrize("declared", [True, False])
async def test_its_built_in_tools_are_guarded_where_the_general_purpose_one_is_declared(
    deep, sync, declared
):
    """It is given no middleware of the parent's: langchain-mcp.md says to declare it."""

    def general(inbox):
        return {
            "name": "general-purpose",
            "description": "Does anything.",
            "system_prompt": "Do it.",
            "middleware": [GuardMiddleware(inbox.agent)],
        }

    made = deep(general=general if declared else None)
    write = ("write_file", {"file_path": "/a.txt", "content": "x"})
    state = await made.run(write, task("general-purpose", write), sync=sync)
    assert "/a.txt" in state["files"]
    assert [call[0] for call in made.calls()].count("write_file") == 1 + declared
