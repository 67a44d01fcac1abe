"""Approvals in graphs that are built by hand: the two nodes with their edge, and bare tools."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt

from agentguard import ApprovalPending, ConfigError, Denied
from agentguard_langchain import (
    GuardedToolDenied,
    guard_approval_node,
    guard_edge,
    guard_subagent,
    guard_tool_node,
    guard_tools,
)

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})
SMALL = ("pay", {"to": "cal", "cents": 5})
APPROVE = {"type": "approve"}


async def ran(graph, given, *, sync, config=CONFIG):
    return graph.invoke(given, config) if sync else await graph.ainvoke(given, config)


def decided(*decisions):
    return Command(resume={"decisions": list(decisions)})


def answers(state):
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def said(*calls):
    made = [
        {"name": name, "args": args, "id": f"call{number}", "type": "tool_call"}
        for number, (name, args) in enumerate(calls)
    ]
    return {"messages": [HumanMessage("go"), AIMessage("", tool_calls=made, id="turn1")]}


def by_hand(inbox, *, tools=None, saver=True, **options):
    """The calls of the input's last message, and the three parts of a guarded graph."""
    tools = inbox.tools if tools is None else tools
    graph = StateGraph(MessagesState)
    graph.add_node("approval", guard_approval_node(tools, inbox.agent, **options))
    graph.add_node("tools", guard_tool_node(tools, inbox.agent, **options))
    graph.add_edge(START, "approval")
    graph.add_conditional_edges("approval", guard_edge("tools"), ["tools", END])
    return graph.compile(checkpointer=InMemorySaver() if saver else None)


@SYNC
async def test_the_approval_node_pauses_once_and_the_tools_enforce(people, sync):
    inbox = people()
    graph = by_hand(inbox)
    paused = await ran(graph, said(BIG, SMALL, BIGGER), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert [(a["name"], a["args"]) for a in pause.value["action_requests"]] == [BIG, BIGGER]
    first, second = inbox.waiting
    inbox.approve(first)
    inbox.reject(second)
    state = await ran(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success", "error"]
    assert sorted(inbox.paid) == [("ann", 500), ("cal", 5)]


@SYNC
async def test_an_edit_and_an_unsigned_answer_work_there_too(people, sync):
    inbox = people(application=True)
    graph = by_hand(inbox, answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, said(BIG, BIGGER), sync=sync)
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "ann", "cents": 6}}}
    state = await ran(graph, decided(edit, APPROVE), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 6), ("ben", 900)]


@SYNC
async def test_a_message_without_calls_goes_past_the_tools(people, sync):
    graph = by_hand(people())
    state = await ran(graph, {"messages": [HumanMessage("go"), AIMessage("no")]}, sync=sync)
    assert [m.type for m in state["messages"]] == ["human", "ai"]


@SYNC
@pytest.mark.parametrize("user", ["alice", "mallory", None])
@pytest.mark.parametrize("way", ["block", "function"])
async def test_whoever_resumes_says_for_whom(people, sync, user, way):
    inbox = people(delegated=True)
    lending = ["alice"]

    def lend(_runtime=None):
        (name,) = lending
        return None if name is None else inbox.guard.delegate(f"user:{name}", scope=["pay"])

    graph = by_hand(inbox, delegation=lend if way == "function" else None)

    async def gone_on(given):
        delegation = lend()
        if way == "function" or delegation is None:
            return await ran(graph, given, sync=sync)
        with delegation:
            return await ran(graph, given, sync=sync)

    await gone_on(said(BIG))
    inbox.approve()
    lending[:] = [user]
    state = await gone_on(None)
    code = {"alice": "paid 500 to ann", "mallory": "[delegation.mismatch]"}
    assert code.get(user, "[delegation.missing]") in answers(state)[0][1]
    assert inbox.paid == ([("ann", 500)] if user == "alice" else [])


@SYNC
async def test_a_refusal_may_end_the_graph(people, sync):
    inbox = people()
    graph = tools_only(inbox, edge=guard_edge(), on_deny="raise")
    await ran(graph, said(BIG), sync=sync)
    inbox.reject()
    with pytest.raises(Denied, match="rejected"):
        await ran(graph, None, sync=sync)


async def test_the_call_is_the_same_in_both_nodes_under_two_instances(people):
    """A request is bound to the agent's name, not to the instance that has asked."""
    inbox = people()
    other = inbox.guard.new_agent("payer")
    graph = StateGraph(MessagesState)
    graph.add_node("approval", guard_approval_node(inbox.tools, inbox.agent))
    graph.add_node("tools", guard_tool_node(inbox.tools, other))
    graph.add_edge(START, "approval")
    graph.add_conditional_edges("approval", guard_edge(), ["tools", END])
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke(said(BIG), CONFIG)
    inbox.approve()
    assert answers(compiled.invoke(None, CONFIG)) == [("success", "paid 500 to ann")]


def test_what_can_not_be_guarded_is_refused_when_the_node_is_made(people):
    inbox = people()
    with pytest.raises(ConfigError):
        guard_tool_node([{"type": "web_search"}], inbox.agent)
    with pytest.raises(ConfigError):
        guard_approval_node([len, {"type": "web_search"}], inbox.agent)


@SYNC
async def test_without_a_checkpointer_the_node_says_so(people, sync):
    inbox = people()
    with pytest.raises(ApprovalPending, match="no checkpointer"):
        await ran(by_hand(inbox, saver=False), said(BIG), sync=sync)
    assert inbox.paid == []


# --- the tool node without the approval node ----------------------------------------------------


def tools_only(inbox, *, edge, tools=None, **options):
    graph = StateGraph(MessagesState)
    node = guard_tool_node(inbox.tools if tools is None else tools, inbox.agent, **options)
    graph.add_node("tools", node)
    if edge is None:
        graph.add_edge(START, "tools")
    else:
        graph.add_conditional_edges(START, edge, ["tools", END])
    return graph.compile(checkpointer=InMemorySaver())


@SYNC
async def test_in_a_task_of_its_own_a_call_pauses_at_its_tool(people, sync):
    inbox = people(application=True)
    graph = tools_only(inbox, edge=guard_edge(), answered_by=lambda _d, _r: "user:dora")
    paused = await ran(graph, said(BIG, SMALL, BIGGER), sync=sync)
    pauses = {p.value["action_requests"][0]["args"]["to"]: p for p in paused["__interrupt__"]}
    assert set(pauses) == {"ann", "ben"}
    assert pauses["ann"].value["review_configs"][0]["allowed_decisions"] == ["approve", "reject"]
    assert inbox.paid == [("cal", 5)]
    answered = {
        pauses["ben"].id: {"decisions": [APPROVE]},
        pauses["ann"].id: {"decisions": [{"type": "reject", "message": "no"}]},
    }
    state = await ran(graph, Command(resume=answered), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "success", "success"]
    assert sorted(inbox.paid) == [("ben", 900), ("cal", 5)]
    assert inbox.codes() == [(5, "allow"), (500, "approval.rejected"), (900, "allow")]


@SYNC
async def test_it_pauses_again_for_an_answer_that_does_not_count(people, sync):
    inbox = people()
    graph = tools_only(inbox, edge=guard_edge())
    await ran(graph, said(BIG), sync=sync)
    for _ in range(2):
        paused = await ran(graph, decided(APPROVE), sync=sync)
        (pause,) = paused["__interrupt__"]
        assert "not signed" in pause.value["agentguard"][0]["problem"]
    state = await ran(
        graph, decided({**APPROVE, "approval": inbox.signed(*inbox.waiting)}), sync=sync
    )
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
@pytest.mark.parametrize("way", ["store", "answer"])
async def test_a_tool_that_interrupts_after_its_approval_gets_its_own_answer(people, sync, way):
    inbox = people(application=True)

    @tool
    def pay(to: str, cents: int) -> str:
        """Pay somebody."""
        return f"{interrupt({'really': cents})} for {to}"

    options = {"tools": [pay], "answered_by": lambda _d, _r: "user:dora"}
    graph = tools_only(inbox, edge=guard_edge(), **options)
    await ran(graph, said(BIG), sync=sync)
    if way == "store":
        inbox.approve()
    paused = await ran(graph, None if way == "store" else decided(APPROVE), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value == {"really": 500}
    # one approval is one attempt: the call that goes on is asked about anew
    paused = await ran(graph, Command(resume="yes"), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value["agentguard"][0]["tool_call_id"] == "call0"


@SYNC
async def test_in_a_task_with_others_a_call_is_refused_and_may_be_made_again(people, sync):
    inbox = people(application=True)
    graph = tools_only(inbox, edge=None, answered_by=lambda _d, _r: "user:dora")
    state = await ran(graph, said(BIG, SMALL, BIGGER), sync=sync)
    assert "__interrupt__" not in state
    assert [status for status, _text in answers(state)] == ["error", "success", "error"]
    text = answers(state)[0][1]
    assert text.startswith("Not now: pay was not run. Reason: it needs an approval")
    assert text.endswith("call it again, by itself [approval.pending].")
    assert (inbox.paid, inbox.waiting) == ([("cal", 5)], [])


@SYNC
async def test_a_pushed_task_of_several_calls_does_not_mix_their_answers(people, sync):
    """``Send("tools", state)``: one of the calls may wait, and nobody else gets its answer."""
    inbox = people(application=True)
    graph = tools_only(
        inbox,
        edge=lambda state: [Send("tools", state)],
        answered_by=lambda _d, _r: "user:dora",
    )
    paused = await ran(graph, said(BIG, BIGGER), sync=sync)
    (pause,) = paused["__interrupt__"]
    (shown,) = pause.value["action_requests"]
    state = await ran(graph, decided(APPROVE), sync=sync)
    assert inbox.paid == [(shown["args"]["to"], shown["args"]["cents"])]
    assert sorted(status for status, _text in answers(state)) == ["error", "success"]


# --- a guarded tool by itself -------------------------------------------------------------------


@SYNC
async def test_a_bare_tool_of_an_agent_pauses_in_its_own_task(people, sync, scripted):
    inbox = people()
    tools = guard_tools(inbox.tools, inbox.agent)
    model = scripted([BIG, SMALL], "done")
    graph = create_agent(model, tools, checkpointer=InMemorySaver())
    paused = await ran(graph, {"messages": [HumanMessage("go")]}, sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value["action_requests"][0]["args"] == BIG[1]
    assert inbox.paid == [("cal", 5)]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 500), ("cal", 5)]


@SYNC
async def test_a_bare_tool_in_one_task_with_others_is_refused(people, sync):
    inbox = people()
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(guard_tools(inbox.tools, inbox.agent)))
    graph.add_edge(START, "tools")
    state = await ran(graph.compile(checkpointer=InMemorySaver()), said(BIG, SMALL), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "success"]
    assert "[approval.pending]" in answers(state)[0][1]
    raising = StateGraph(MessagesState)
    raising.add_node("tools", ToolNode(guard_tools(inbox.tools, inbox.agent, on_deny="raise")))
    raising.add_edge(START, "tools")
    with pytest.raises(ApprovalPending):
        await ran(raising.compile(checkpointer=InMemorySaver()), said(BIG), sync=sync)


@SYNC
@pytest.mark.parametrize("tool_call", [True, False])
async def test_outside_a_graph_it_raises_and_runs_once_it_is_approved(people, sync, tool_call):
    inbox = people()
    (guarded,) = guard_tools([inbox.pay], inbox.agent)
    given: Any = {"name": "pay", "args": BIG[1], "id": "c1", "type": "tool_call"}
    given = given if tool_call else BIG[1]

    async def called():
        return guarded.invoke(given) if sync else await guarded.ainvoke(given)

    with pytest.raises(ApprovalPending) as raised:
        await called()
    assert not isinstance(raised.value, Denied)
    assert ("no graph runs here" in str(raised.value)) is tool_call
    assert inbox.paid == []
    inbox.approve(raised.value.request)
    result = await called()
    assert (result.content if tool_call else result) == "paid 500 to ann"
    with pytest.raises(ApprovalPending):
        await called()  # another call
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_a_tool_that_a_node_invokes_raises(people, sync):
    inbox = people()
    (guarded,) = guard_tools([inbox.pay], inbox.agent)

    def work(_state):
        guarded.invoke(BIG[1])

    async def awork(_state):
        await guarded.ainvoke(BIG[1])

    graph = StateGraph(MessagesState)
    graph.add_node("work", RunnableLambda(work, awork))
    graph.add_edge(START, "work")
    compiled = graph.compile(checkpointer=InMemorySaver())
    with pytest.raises(ApprovalPending):
        await ran(compiled, {"messages": []}, sync=sync)
    inbox.approve()
    await ran(compiled, None, sync=sync)
    assert inbox.paid == [("ann", 500)]


# --- two sub-agents that pause ------------------------------------------------------------------


@SYNC
async def test_two_sub_agents_of_one_turn_get_their_own_answers(people, sync, scripted):
    inbox = people()
    child_agent = inbox.guard.new_agent("payer")
    children = {
        call[1]["to"]: create_agent(scripted([call], "done"), guard_tools(inbox.tools, child_agent))
        for call in (BIG, BIGGER)
    }

    def of(name, child):
        def ask(task: str) -> str:
            """Let a sub-agent do it."""
            state = child.invoke({"messages": [HumanMessage(task)]})
            return "; ".join(m.content for m in state["messages"] if m.type == "tool")

        async def aask(task: str) -> str:
            """Let a sub-agent do it."""
            state = await child.ainvoke({"messages": [HumanMessage(task)]})
            return "; ".join(m.content for m in state["messages"] if m.type == "tool")

        asking = StructuredTool.from_function(ask, aask, name=f"ask_{name}")
        return guard_subagent(asking, child_agent, scope=["pay"])

    tools = [of(name, child) for name, child in children.items()]
    graph = by_hand(inbox, tools=tools)
    calls = [(f"ask_{name}", {"task": "pay"}) for name in children]
    paused = await ran(graph, said(*calls), sync=sync)
    pauses = {p.value["action_requests"][0]["args"]["to"]: p for p in paused["__interrupt__"]}
    assert set(pauses) == {"ann", "ben"}
    ann = next(r for r in inbox.waiting if b"ann" in r.arguments)
    ben = next(r for r in inbox.waiting if b"ben" in r.arguments)
    answered = {
        pauses["ben"].id: {"decisions": [{**APPROVE, "approval": inbox.signed(ben)}]},
        pauses["ann"].id: {"decisions": [{"type": "reject", "message": "no"}]},
    }
    assert ann
    state = await ran(graph, Command(resume=answered), sync=sync)
    texts = [text for _status, text in answers(state)]
    assert "[approval.rejected]" in texts[0]
    assert texts[1] == "paid 900 to ben"
    assert inbox.paid == [("ben", 900)]


@SYNC
async def test_sub_agents_may_be_made_to_work_one_at_a_time(people, sync):
    inbox = people()

    def ask(task: str) -> str:
        """Let a sub-agent do it."""
        return f"did {task}"

    child = inbox.guard.new_agent("payer")
    asking = guard_subagent(tool(ask), child, scope=["pay"])
    calls = [("ask", {"task": "a"}), SMALL, ("ask", {"task": "b"})]
    graph = tools_only(
        inbox, edge=guard_edge(), tools=[asking, inbox.pay], parallel_subagents=False
    )
    state = await ran(graph, said(*calls), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success", "error"]
    assert "[subagent.parallel]" in answers(state)[2][1]
    graph = tools_only(inbox, edge=guard_edge(), tools=[asking, inbox.pay])
    state = await ran(graph, said(*calls), sync=sync)
    assert [status for status, _text in answers(state)] == ["success"] * 3


@SYNC
async def test_no_id_and_an_empty_one_are_the_same_id(people, sync):
    """Else one call would be shown with the arguments of the other."""
    inbox = people()
    calls = [
        {"name": name, "args": args, "id": call_id, "type": "tool_call"}
        for (name, args), call_id in zip((BIG, BIGGER), (None, ""), strict=True)
    ]
    given = {"messages": [HumanMessage("go"), AIMessage("", tool_calls=calls, id="turn1")]}
    with pytest.raises(GuardedToolDenied) as denied:  # LangGraph answers no call without an id
        await ran(by_hand(inbox), given, sync=sync)
    assert denied.value.code == "call.duplicate"
    assert (inbox.waiting, inbox.paid) == ([], [])


def test_the_wrap_of_the_tool_node_is_the_guards(people):
    inbox = people()
    with pytest.raises(ConfigError, match="wrap_tool_call is the guard's own"):
        guard_tool_node([inbox.pay], inbox.agent, wrap_tool_call=lambda request, go: go(request))
    assert guard_tool_node([inbox.pay], inbox.agent, name="mine").name == "mine"
