"""Runs of sub-agents that pause: what they ask reaches the top, and they go on from there."""

from __future__ import annotations

import pytest
from graph_runs import SYNC, answers, invoke_thread, resume_with
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from payment_team import APPROVE, BIG, BIGGER, LOOK
from rounds import pairs

from agentguard_langchain import GuardMiddleware, guard_subagent


def running(child, name):
    """A tool that runs a child graph."""

    def ask(task: str) -> str:
        """Let the child do it."""
        state = child.invoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    async def aask(task: str) -> str:
        """Let the child do it."""
        state = await child.ainvoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    return StructuredTool.from_function(ask, aask, name=name)


def nested(inbox, inner, *, wrapped="tool", tools=None, name="ask"):
    """A parent's tool that runs a child agent, which has a middleware of its own."""
    agent = inbox.guard.new_agent("payer")
    tools = inbox.tools if tools is None else tools
    child = create_agent(inner, tools, middleware=[GuardMiddleware(agent)], name="child")
    if wrapped == "graph":
        child = guard_subagent(child, agent, scope=["pay"])
    asking = running(child, name)
    return guard_subagent(asking, agent, scope=["pay"]) if wrapped == "tool" else asking


@pairs(sync=[True, False], wrapped=["tool", "graph", "not"], way=["store", "answer"])
async def test_what_a_child_asks_reaches_the_top(people, sync, wrapped, way, scripted):
    inbox = people(delegated=True)
    asking = nested(inbox, scripted([BIG, LOOK], "done"), wrapped=wrapped)
    graph = inbox.graph(tools=[asking])
    with inbox.lend():
        paused = await invoke_thread(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value["action_requests"][0]["args"] == BIG[1]
    assert inbox.paid == []
    (request,) = inbox.waiting
    if way == "store":
        inbox.approve()
        given = None
    else:
        given = resume_with({**APPROVE, "approval": inbox.signed(request)})
    state = await invoke_thread(graph, given, sync=sync)
    assert "paid 500 to ann" in answers(state)[0][1]
    assert sorted(inbox.paid) == [("ann", 500), ("books", 0)]
    # for alice, through the parent
    assert request.principal == "user:alice"
    assert len(request.actors) == 3
    assert set(inbox.principals()) == {"user:alice"}


@SYNC
@pytest.mark.parametrize("way", ["store", "answer"])
async def test_what_a_grandchild_asks_reaches_the_top(people, sync, way, scripted):
    inbox = people(delegated=True)
    inner = nested(inbox, scripted([BIG], [BIGGER], "done"), name="inner")
    outer = nested(inbox, scripted([("inner", {"task": "go"})], "done"), tools=[inner])
    graph = inbox.graph(tools=[outer])
    with inbox.lend():
        paused = await invoke_thread(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    for _ in range(2):  # two turns, and a pause in each
        (pause,) = paused["__interrupt__"]
        (request,) = inbox.waiting
        assert pause.value["agentguard"][0]["request_id"] == request.request_id
        assert len(request.actors) == 4
        if way == "store":
            inbox.approve()
            paused = await invoke_thread(graph, None, sync=sync)
        else:
            signed = {**APPROVE, "approval": inbox.signed(request)}
            paused = await invoke_thread(graph, resume_with(signed), sync=sync)
    assert "__interrupt__" not in paused
    assert inbox.paid == [("ann", 500), ("ben", 900)]


@SYNC
async def test_new_input_withdraws_what_a_child_waits_for(people, sync, scripted):
    inbox = people()
    asking = nested(inbox, scripted([BIG], "done"), wrapped="not")
    graph = inbox.graph(tools=[asking])
    await invoke_thread(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    assert len(inbox.waiting) == 1
    state = await invoke_thread(graph, {"messages": [HumanMessage("stop")]}, sync=sync)
    assert inbox.waiting == []
    assert [status for status, _text in answers(state)] == ["error"]
    assert inbox.paid == []


@SYNC
async def test_a_child_does_not_go_on_for_another_principal(people, sync, scripted):
    inbox = people(delegated=True)
    asking = nested(inbox, scripted([BIG], "done"))
    graph = inbox.graph(tools=[asking])
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    inbox.approve()
    with inbox.lend("mallory"):
        state = await invoke_thread(graph, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_parallel_children_are_decided_in_the_store_or_by_id(people, sync, scripted):
    inbox = people(delegated=True)
    first = nested(inbox, scripted([BIG], "done"))
    second = nested(inbox, scripted([BIGGER], "done"), name="ask2")
    graph = inbox.graph(tools=[first, second])
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    with inbox.lend():
        paused = await invoke_thread(graph, inbox.asking(*calls), sync=sync)
    pauses = {p.value["action_requests"][0]["args"]["to"]: p for p in paused["__interrupt__"]}
    assert set(pauses) == {"ann", "ben"}
    ben = next(one for one in inbox.waiting if b"ben" in one.arguments)
    only = {pauses["ben"].id: {"decisions": [{**APPROVE, "approval": inbox.signed(ben)}]}}
    await invoke_thread(graph, Command(resume=only), sync=sync)
    assert inbox.paid == [("ben", 900)]
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert [text for _status, text in answers(state)] == ["paid 500 to ann", "paid 900 to ben"]
    assert sorted(inbox.paid) == [("ann", 500), ("ben", 900)]


@SYNC
@pytest.mark.parametrize("parallel", [True, False])
async def test_children_may_be_made_to_work_one_at_a_time(people, sync, parallel, scripted):
    inbox = people()
    first = nested(inbox, scripted([BIG], "done"))
    second = nested(inbox, scripted([BIGGER], "done"), name="ask2")
    graph = inbox.graph(tools=[first, second], parallel_subagents=parallel)
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    paused = await invoke_thread(graph, inbox.asking(*calls), sync=sync)
    assert len(paused["__interrupt__"]) == (2 if parallel else 1)
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    texts = [text for _status, text in answers(state)]
    assert texts[0] == "paid 500 to ann"
    assert ("[subagent.parallel]" in texts[1]) is not parallel


@SYNC
async def test_a_child_graph_as_a_node_asks_as_well(people, sync, scripted):
    inbox = people()
    child = create_agent(
        scripted([BIG], "done"), inbox.tools, middleware=[GuardMiddleware(inbox.agent)]
    )
    graph = StateGraph(MessagesState)
    graph.add_node("child", child)
    graph.add_edge(START, "child")
    graph.add_edge("child", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    paused = await invoke_thread(compiled, {"messages": [HumanMessage("go")]}, sync=sync)
    assert len(paused["__interrupt__"]) == 1
    inbox.approve()
    state = await invoke_thread(compiled, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]
