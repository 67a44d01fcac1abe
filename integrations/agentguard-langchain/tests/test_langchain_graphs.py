"""Guarded tools where they are used: ToolNode in a graph, create_agent, streams, interrupts."""

from __future__ import annotations

import operator
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt

from agentguard.adapters import CallSite
from agentguard_langchain import GuardedToolDenied, guard_tools

CONFIG: Any = {"configurable": {"thread_id": "t1"}}
ASK = {"messages": [HumanMessage("count")]}


class State(MessagesState):
    """Messages, and what tools write."""

    notes: Annotated[list[str], operator.add]


def graph_of(model, tools, **options):
    """Build the loop of model and ToolNode by hand."""
    bound = model.bind_tools(tools)

    def think(state):
        return {"messages": [bound.invoke(state["messages"])]}

    def more(state):
        return "tools" if state["messages"][-1].tool_calls else END

    graph = StateGraph(State)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", more, ["tools", END])
    graph.add_edge("tools", "think")
    return graph.compile(**options)


def agent_of(model, tools, **options):
    return create_agent(model, tools, **options)


BUILDERS = pytest.mark.parametrize("build", [graph_of, agent_of])
SYNC = pytest.mark.parametrize("sync", [True, False])


async def ran(graph, given, *, sync, config=CONFIG, **options):
    return (
        graph.invoke(given, config, **options)
        if sync
        else await graph.ainvoke(given, config, **options)
    )


def answers(state):
    return [(m.tool_call_id, m.status, m.content) for m in state["messages"] if m.type == "tool"]


@BUILDERS
@SYNC
async def test_parallel_calls_are_each_answered_for(counted, limited, scripted, build, sync):
    tools = guard_tools([counted.tool], limited.agent)
    model = scripted([("count", {"x": x}) for x in (1, 30, 2)], "done")
    state = await ran(build(model, tools), ASK, sync=sync)
    refused = (
        "Denied: count was not run. Reason: x is over 9 [policy.denied]. "
        "Do not retry: repeating the same call will not help."
    )
    assert answers(state) == [
        ("call1", "success", "ran with 1"),
        ("call2", "error", refused),
        ("call3", "success", "ran with 2"),
    ]
    assert state["messages"][-1].content == "done"
    assert sorted(counted.runs) == [1, 2]
    logged = {call.values["x"]: call for call in limited.log.calls()}
    assert {x: call.decision for x, call in logged.items()} == {1: "allow", 30: "deny", 2: "allow"}
    assert {call.agent for call in logged.values()} == {limited.agent.id}
    assert len({call.predicate["call_site"] for call in logged.values()}) == 3


@BUILDERS
@SYNC
async def test_a_run_is_the_same_under_a_policy_that_allows_it(
    counted, allowing, scripted, build, sync
):
    script = [("count", {"x": 1}), ("count", {"x": "many"}), ("nobody", {})], "done"
    expected = await ran(build(scripted(*script), [counted.tool]), ASK, sync=sync)
    tools = guard_tools([counted.tool], allowing.agent)
    state = await ran(build(scripted(*script), tools), ASK, sync=sync)
    assert answers(state) == answers(expected)
    assert len(allowing.log.calls()) == 1


@BUILDERS
async def test_a_run_ends_where_a_denial_is_to_be_raised(counted, limited, scripted, build):
    tools = guard_tools([counted.tool], limited.agent, on_deny="raise")
    with pytest.raises(GuardedToolDenied):
        build(scripted([("count", {"x": 30})], "done"), tools).invoke(ASK, CONFIG)
    state = build(scripted([("count", {"x": 3})], "done"), tools).invoke(ASK, CONFIG)
    assert state["messages"][-1].content == "done"


def test_the_model_is_given_the_guarded_tools(counted, limited, scripted):
    tools = guard_tools([counted.tool], limited.agent)
    model = scripted("done")
    agent_of(model, tools).invoke(ASK, CONFIG)
    assert model.given == [tools]


@BUILDERS
async def test_the_call_site_names_thread_task_and_call(counted, limited, scripted, build):
    spaces = []

    def where(x: int, runtime: ToolRuntime) -> str:
        """Tell where."""
        spaces.append(runtime.config["configurable"]["checkpoint_ns"])
        return str(x)

    tools = guard_tools([where], limited.agent)
    build(scripted([("where", {"x": 1})], "done"), tools).invoke(ASK, CONFIG)
    (logged,) = limited.log.calls()
    (space,) = spaces
    assert space.startswith("tools:")
    assert logged.predicate["call_site"] == CallSite("call1", "t1", space).digest("reviewer")
    assert logged.predicate["unbound"] == ["runtime"]


@BUILDERS
@SYNC
async def test_what_the_graph_injects_arrives_and_is_not_bound(limited, scripted, build, sync):
    seen: dict[str, Any] = {}

    def look(
        x: int,
        state: Annotated[dict, InjectedState],
        messages: Annotated[list[AnyMessage], InjectedState("messages")],
        store: Annotated[Any, InjectedStore()],
        call_id: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime,
    ) -> str:
        """Look around."""
        seen.update(
            state=len(state["messages"]),
            messages=len(messages),
            store=store.get(("a",), "b").value,
            call_id=call_id,
            runtime=runtime.tool_call_id,
        )
        return "looked"

    store = InMemoryStore()
    store.put(("a",), "b", {"c": 1})
    tools = guard_tools([look], limited.agent)
    forged = {"x": 1, "state": {"messages": []}, "call_id": "forged"}
    state = await ran(
        build(scripted([("look", forged)], "done"), tools, store=store), ASK, sync=sync
    )
    assert answers(state) == [("call1", "success", "looked")]
    expected = {"state": 2, "messages": 2, "store": {"c": 1}, "call_id": "call1"}
    assert seen == {**expected, "runtime": "call1"}
    (logged,) = limited.log.calls()
    assert logged.values == {"x": 1}
    assert logged.predicate["unbound"] == ["call_id", "messages", "runtime", "state", "store"]


@SYNC
async def test_commands_update_the_state(limited, scripted, sync):
    @tool
    def note(x: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
        """Note."""
        message = ToolMessage("noted", tool_call_id=tool_call_id)
        return Command(update={"notes": [str(x)], "messages": [message]})

    tools = guard_tools([note], limited.agent)
    calls = [("note", {"x": 1}), ("note", {"x": 30}), ("note", {"x": 2})]
    state = await ran(graph_of(scripted(calls, "done"), tools), ASK, sync=sync)
    assert state["notes"] == ["1", "2"]
    assert [status for _id, status, _text in answers(state)] == ["success", "error", "success"]


@BUILDERS
async def test_streams_are_the_same(limited, scripted, build):
    @tool
    def tell(x: int, runtime: ToolRuntime) -> str:
        """Tell as it goes."""
        runtime.stream_writer({"at": x})
        return "told"

    async def streamed(tools):
        graph = build(scripted([("tell", {"x": 1})], "done"), tools)
        modes = ["updates", "custom", "messages"]
        parts = [part async for part in graph.astream(ASK, CONFIG, stream_mode=modes)]
        events = [e["event"] async for e in build(
            scripted([("tell", {"x": 1})], "done"), tools
        ).astream_events(ASK, CONFIG, version="v2")]  # fmt: skip
        return (
            [(mode, part) for mode, part in parts if mode == "custom"],
            [mode for mode, _part in parts],
            events,
        )

    assert await streamed(guard_tools([tell], limited.agent)) == await streamed([tell])
    assert {call.outcome for call in limited.log.calls()} == {"ok"}


@BUILDERS
@SYNC
async def test_an_interrupt_passes_through_and_the_outcome_is_unknown(
    limited, scripted, build, sync
):
    def ask(x: int) -> str:
        """Ask a person."""
        return f"{interrupt({'about': x})} for {x}"

    async def aask(x: int) -> str:
        """Ask a person."""
        return f"{interrupt({'about': x})} for {x}"

    both = StructuredTool.from_function(ask, aask)
    tools = guard_tools([both], limited.agent)
    graph = build(scripted([("ask", {"x": 1})], "done"), tools, checkpointer=InMemorySaver())
    paused = await ran(graph, ASK, sync=sync)
    assert [pause.value for pause in paused["__interrupt__"]] == [{"about": 1}]
    assert [call.outcome for call in limited.log.calls()] == ["unknown"]
    state = await ran(graph, Command(resume="yes"), sync=sync)
    assert answers(state) == [("call1", "success", "yes for 1")]
    logged = limited.log.calls()
    assert [call.outcome for call in logged] == ["unknown", "ok"]
    # in the process that resumes, it is the same call of the same thread
    assert len({call.predicate["call_site"] for call in logged}) == 1


@BUILDERS
async def test_nothing_of_the_guard_reaches_a_checkpoint(counted, limited, scripted, build):
    saver = InMemorySaver()
    tools = guard_tools([counted.tool], limited.agent)
    graph = build(
        scripted([("count", {"x": 1}), ("count", {"x": 30})], "done"), tools, checkpointer=saver
    )
    graph.invoke(ASK, CONFIG)
    kept = repr((dict(saver.storage), dict(saver.writes), dict(saver.blobs))).encode()
    assert b"ran with 1" in kept
    hidden = [limited.agent.id, limited.agent.name, limited.guard.trust.trust_domain, "agentguard"]
    assert [word for word in hidden if word.encode() in kept] == []


async def test_two_agents_of_one_graph_sign_for_themselves(counted, limited, scripted):
    writer = limited.guard.new_agent("writer")
    inner = agent_of(
        scripted([("count", {"x": 2})], "written"),
        guard_tools([counted.tool], writer),
        name="writer",
    )

    async def delegate(x: int) -> str:
        """Let the writer do it."""
        state = await inner.ainvoke({"messages": [HumanMessage(f"write {x}")]})
        return state["messages"][-1].content

    tools = guard_tools([delegate, counted.tool], limited.agent)
    model = scripted([("delegate", {"x": 1}), ("count", {"x": 3})], "done")
    # the caller's metadata is no identity
    config = {**CONFIG, "metadata": {"lc_agent_name": "writer"}}
    state = await agent_of(model, tools, name="reviewer").ainvoke(ASK, config)
    assert answers(state)[0] == ("call1", "success", "written")
    signed = {(c.tool, c.values["x"]): c.agent for c in limited.log.calls()}
    assert signed == {
        ("delegate", 1): limited.agent.id,
        ("count", 2): writer.id,
        ("count", 3): limited.agent.id,
    }


def test_return_direct_and_artifacts_stay(limited, scripted):
    @tool(return_direct=True, response_format="content_and_artifact")
    def finish(x: int) -> tuple[str, dict[str, int]]:
        """Finish."""
        return "finished", {"x": x}

    tools = guard_tools([finish], limited.agent)
    state = agent_of(scripted([("finish", {"x": 1})], "more"), tools).invoke(ASK, CONFIG)
    last = state["messages"][-1]
    assert (last.content, last.artifact) == ("finished", {"x": 1})
    assert isinstance(state["messages"][-2], AIMessage)
