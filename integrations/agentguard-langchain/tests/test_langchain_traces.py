"""One trace from a run down to its tools: through sub-agents, threads, async and a pause."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from agentguard_langchain import GuardMiddleware, guard_approval_node, guard_subagent, guard_tools
from agentguard_langchain.nodes import guard_edge, guard_tool_node
from agentguard_langchain.run_spans import _RUNS

CONFIG: Any = {"configurable": {"thread_id": "t1"}}
SYNC = pytest.mark.parametrize("sync", [True, False])


async def ran(graph, given, config=None, *, sync):
    if sync:
        return await asyncio.to_thread(graph.invoke, given, config or CONFIG)
    return await graph.ainvoke(given, config or CONFIG)


def asking(*calls):
    return {"messages": [HumanMessage(json.dumps(calls))]}


class Team:
    """A payer whose payments over 100 need bob; a clerk of its, in a sub-agent, pays too."""

    def __init__(self, people, obedient):
        self.people = people(delegated=True)
        guard = self.people.guard
        self.guard = guard
        self.model = obedient
        self.saver = InMemorySaver()

    def clerk(self, *, name="payer"):
        agent = self.guard.new_agent(name)
        child = create_agent(
            self.model, self.people.tools, middleware=[GuardMiddleware(agent)], name="clerk"
        )
        self.child = guard_subagent(child, agent, scope=["pay"])

        def ask(task: str) -> str:
            """Ask the clerk."""
            return self.child.invoke({"messages": [("user", task)]})["messages"][-1].text

        async def aask(task: str) -> str:
            """Ask the clerk."""
            said = await self.child.ainvoke({"messages": [("user", task)]})
            return said["messages"][-1].text

        return guard_subagent(
            StructuredTool.from_function(ask, aask, name="ask"), agent, scope=["pay"]
        )

    def graph(self, *tools):
        return create_agent(
            self.model,
            [*self.people.tools, *tools],
            middleware=[GuardMiddleware(self.people.agent)],
            checkpointer=self.saver,
        )

    def lend(self):
        return self.guard.delegate("user:alice", scope=["pay"], task_id="task_1")


@pytest.fixture
def team(people, obedient):
    return Team(people, obedient)


def of_trace(spans):
    return {span.context.trace_id for span in spans.all()}


@SYNC
async def test_a_run_and_its_calls_are_one_trace(team, spans, sync):
    with team.lend():
        await ran(
            team.graph(),
            asking(("pay", {"to": "a", "cents": 1}), ("look", {"what": "b"})),
            sync=sync,
        )
    tree = spans.tree()
    assert tree[0] == "invoke_agent payer"
    assert sorted(tree[1:]) == ["  execute_tool look", "  execute_tool pay"]
    run = spans.one("invoke_agent payer")
    assert run.attributes["gen_ai.conversation.id"] == "t1"
    assert run.attributes["agentguard.agent.id"] == team.people.agent.id
    assert run.attributes["agentguard.principal.id"] == "user:alice"
    assert run.attributes["agentguard.task.id"] == "task_1"
    assert run.attributes["agentguard.delegation.chain"].endswith(">agent:payer")
    pay = spans.one("execute_tool pay")
    assert run.start_time < pay.start_time < pay.end_time < run.end_time
    assert pay.attributes["gen_ai.tool.call.id"] == "call0.0"
    assert (
        pay.attributes["agentguard.delegation.chain"]
        == run.attributes["agentguard.delegation.chain"]
    )


@SYNC
async def test_a_sub_agent_nests_under_the_call_that_delegates(team, spans, sync):
    task = json.dumps([("look", {"what": "x"})])
    tracer = trace.get_tracer("an application")
    with team.lend(), tracer.start_as_current_span("POST /chat"):
        await ran(team.graph(team.clerk()), asking(("ask", {"task": task})), sync=sync)
    assert spans.tree() == [
        "POST /chat",
        "  invoke_agent payer",
        "    execute_tool ask",
        "      invoke_agent payer",
        "        execute_tool look",
    ]
    inner = spans.named("invoke_agent payer")[0]
    assert inner.attributes["agentguard.delegation.chain"].endswith(">agent:payer>agent:payer")


@SYNC
async def test_a_pause_of_a_sub_agent_is_no_error_and_the_run_goes_on_in_its_trace(
    team, spans, sync
):
    task = json.dumps([("pay", {"to": "x", "cents": 500})])
    graph = team.graph(team.clerk())
    with team.lend():
        paused = await ran(graph, asking(("ask", {"task": task})), sync=sync)
    assert paused["__interrupt__"]
    waiting = spans.tree()
    assert waiting == [
        "invoke_agent payer",
        "  execute_tool ask",
        "    invoke_agent payer",
        "      execute_tool pay",
    ]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    assert spans.one("execute_tool ask").attributes["agentguard.outcome.status"] == "suspended"
    asked = spans.one("execute_tool pay")
    assert asked.attributes["agentguard.approval.status"] == "pending"
    first = spans.named("invoke_agent payer")[1]  # the outer one ends last

    team.people.approve()
    resuming = Command(resume={"decisions": [{"type": "approve"}]}) if sync else None
    tracer = trace.get_tracer("an application")
    with team.lend(), tracer.start_as_current_span("POST /approved") as other:
        done = await ran(graph, resuming, sync=sync)
    assert done["messages"][-1].text == "paid 500 to x"
    (own,) = (s for s in spans.all() if s.name == "POST /approved")
    assert {s.context.trace_id for s in spans.all() if s is not own} == {first.context.trace_id}
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    inner, outer = spans.named("invoke_agent payer")[2:]
    links = {link.attributes["agentguard.link"]: link.context.span_id for link in outer.links}
    assert links == {
        "paused": first.context.span_id,
        "caller": other.get_span_context().span_id,
    }
    assert outer.parent.span_id == first.context.span_id
    by_id = {span.context.span_id: span for span in spans.all()}
    assert by_id[by_id[inner.parent.span_id].parent.span_id] is outer
    paid = spans.named("execute_tool pay")[-1]
    assert paid.parent.span_id == inner.context.span_id
    assert [link.context.span_id for link in paid.links] == [asked.context.span_id]
    assert paid.attributes["agentguard.approval.status"] == "approved"
    assert paid.attributes["agentguard.approval.id"] == asked.attributes["agentguard.approval.id"]


@SYNC
async def test_a_hand_off_to_the_graph_around_is_no_error(team, spans, sync):
    def leave(_state):
        answer = ToolMessage("handed off", tool_call_id="call0")
        return Command(graph=Command.PARENT, update={"messages": [answer]}, goto="after")

    inner = StateGraph(MessagesState)
    inner.add_node("leave", leave)
    inner.add_edge(START, "leave")
    child = inner.compile()

    def look(what: str) -> str:
        """Hand off, unless there is nothing to hand."""
        if what == "nothing":
            raise LookupError(what)
        return str(child.invoke({"messages": []}))

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(guard_tools([tool(look)], team.people.agent)))
    graph.add_node("after", lambda _state: {"messages": [AIMessage("after")]})
    graph.add_edge(START, "tools")

    def call(what):
        asked = {"name": "look", "args": {"what": what}, "id": "call0"}
        return {"messages": [AIMessage("", tool_calls=[asked])]}

    with team.lend():
        state = await ran(graph.compile(), call("x"), sync=sync)
        assert state["messages"][-1].text == "after"
        with pytest.raises(LookupError):
            await ran(graph.compile(), call("nothing"), sync=sync)
    handed, failed = spans.named("execute_tool look")
    assert handed.status.status_code is StatusCode.UNSET
    assert handed.attributes["agentguard.outcome.status"] == "unknown"
    assert "error.type" not in handed.attributes
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "LookupError"


@SYNC
async def test_a_denial_is_an_error_of_the_call_and_not_of_the_run(team, spans, sync):
    with team.lend():
        await ran(team.graph(), asking(("pay", {"to": "a", "cents": 20_000})), sync=sync)
    pay, run = spans.all()
    assert pay.attributes["error.type"] == "policy.denied"
    assert (run.name, run.status.status_code) == ("invoke_agent payer", StatusCode.UNSET)


@SYNC
async def test_what_ends_a_run_is_its_error(team, spans, sync):
    class BrokenError(Exception):
        pass

    @tool
    def broken() -> str:
        """Fail."""
        raise BrokenError("a secret")

    with team.lend(), pytest.raises(BrokenError):
        await ran(team.graph(broken), asking(("broken", {})), sync=sync)
    call, run = spans.all()
    assert call.attributes["error.type"].endswith("BrokenError")
    assert run.attributes["error.type"].endswith("BrokenError")
    assert "a secret" not in call.to_json() + run.to_json()


@SYNC
async def test_runs_at_once_are_traces_of_their_own(team, spans, sync):
    graph = team.graph()

    async def one(number):
        config = {"configurable": {"thread_id": f"t{number}"}}
        with team.lend():
            await ran(graph, asking(*[("look", {"what": f"{number}"})] * 3), config, sync=sync)

    await asyncio.gather(*(one(number) for number in range(6)))
    assert len(of_trace(spans)) == 6
    runs = {span.context.span_id: span for span in spans.named("invoke_agent payer")}
    assert len(runs) == 6
    calls = spans.named("execute_tool look")
    assert len(calls) == 18
    assert all(runs[c.parent.span_id].context.trace_id == c.context.trace_id for c in calls)


@SYNC
async def test_guard_tools_alone_has_the_run_as_well(team, spans, sync):
    graph = create_agent(team.model, guard_tools(team.people.tools, team.people.agent))
    with team.lend():
        await ran(graph, asking(("look", {"what": "a"})), sync=sync)
    assert spans.tree() == ["invoke_agent payer", "  execute_tool look"]


@SYNC
async def test_a_graph_that_is_built_by_hand(team, spans, sync):
    def call_model(state):
        return {"messages": [team.model.invoke(state["messages"])]}

    built = StateGraph(MessagesState)
    built.add_node("model", call_model)
    built.add_node("approval", guard_approval_node(team.people.tools, team.people.agent))
    built.add_node("tools", guard_tool_node(team.people.tools, team.people.agent))
    built.add_edge(START, "model")
    built.add_edge("model", "approval")
    built.add_conditional_edges("approval", guard_edge("tools"), ["tools", "__end__"])
    graph = built.compile(checkpointer=team.saver)
    with team.lend():
        await ran(graph, asking(("pay", {"to": "a", "cents": 500})), sync=sync)
    assert spans.tree() == ["invoke_agent payer", "  execute_tool pay"]
    asked = spans.one("execute_tool pay")
    team.people.approve()
    with team.lend():
        await ran(graph, None, sync=sync)
    _, paid = spans.named("execute_tool pay")
    assert paid.context.trace_id == asked.context.trace_id
    assert asked.context.span_id in {link.context.span_id for link in paid.links}


@SYNC
async def test_a_sub_agent_that_is_no_graph_has_a_run_as_well(team, spans, sync):
    agent = team.guard.new_agent("payer")
    look = guard_tools(team.people.tools, agent)[1]

    def ask(task: str) -> str:
        """Ask the clerk."""
        return look.invoke({"what": task})

    async def aask(task: str) -> str:
        """Ask the clerk."""
        return await look.ainvoke({"what": task})

    asks = StructuredTool.from_function(ask, aask, name="ask")
    graph = team.graph(guard_subagent(asks, agent, scope=["pay"]))
    with team.lend():
        await ran(graph, asking(("ask", {"task": "x"})), sync=sync)
    assert spans.tree() == [
        "invoke_agent payer",
        "  execute_tool ask",
        "    invoke_agent payer",
        "      execute_tool look",
    ]
    inner, _ = spans.named("invoke_agent payer")
    assert inner.attributes["agentguard.agent.id"] == agent.id


def test_outside_a_graph_a_tool_call_is_a_span_by_itself(team, spans):
    look = guard_tools(team.people.tools, team.people.agent)[1]
    with team.lend():
        look.invoke({"what": "a"})
    assert spans.tree() == ["execute_tool look"]


def test_a_guarded_tool_in_a_tool_nests_in_it(team, spans):
    look = guard_tools(team.people.tools, team.people.agent)[1]

    @tool
    def ask(what: str) -> str:
        """Look by another tool."""
        return look.invoke({"what": what})

    with team.lend():
        team.graph(ask).invoke(asking(("ask", {"what": "a"})), CONFIG)
    assert spans.tree() == ["invoke_agent payer", "  execute_tool ask", "    execute_tool look"]


async def test_no_run_is_kept_once_it_is_over(team, spans):
    graph = team.graph()
    with team.lend():
        graph.invoke(asking(("look", {"what": "a"})), CONFIG)
        graph.invoke(asking(("pay", {"to": "a", "cents": 500})), CONFIG)  # pauses
        with pytest.raises(GraphRecursionError):
            graph.invoke(asking(("look", {"what": "a"})), {**CONFIG, "recursion_limit": 2})
        for _ in graph.stream(asking(("look", {"what": "a"})), CONFIG):
            break  # the rest is not asked for
        async with aclosing(graph.astream(asking(("look", {"what": "a"})), CONFIG)) as items:
            async for _ in items:
                break
    gc.collect()  # which closes the other one
    assert _RUNS._runs == {}
    failed = [s for s in spans.named("invoke_agent payer") if "error.type" in s.attributes]
    assert [span.attributes["error.type"] for span in failed] == ["GraphRecursionError"]


def test_without_an_sdk_langchain_is_left_alone(team):
    seen = []

    @tool
    def ask(callbacks: Any = None) -> str:
        """Look who is told."""
        seen.extend(type(handler).__module__ for handler in callbacks.handlers)
        return "asked"

    with team.lend():
        team.graph(ask).invoke(asking(("ask", {})), CONFIG)
    assert not [name for name in seen if name.startswith("agentguard")]


# --- beside the instrumentors of others: each in a process of its own, for they patch LangChain ---

OURS = "agentguard"
WITH = pytest.mark.parametrize("instrumentor", ["OpenLLMetry", "OpenInference"])


@pytest.fixture(scope="session")
def played(preloaded):
    """The scenes of ``instrumented.py``: the spans of one, and what the log says of it."""
    script = Path(__file__).parent / "instrumented.py"

    @functools.cache
    def scenes(instrumentor):
        done = preloaded.run(script, instrumentor, cwd=script.parent)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _played(instrumentor, scene, *, sync):
        told = scenes(instrumentor)["sync" if sync else "async"][scene]
        assert len({span["trace"] for span in told["spans"]}) == 1
        return told["spans"], told["traceparents"]

    return _played


def of_tool(spans, name):
    """The span of a tool's one call and the authorization in it, which is no call's."""
    (theirs,) = (span for span in calls(spans) if span["attributes"]["gen_ai.tool.name"] == name)
    assert theirs["scope"] != OURS
    (authorize,) = (s for s in spans if s["scope"] == OURS and s["parent"] == theirs["span"])
    assert authorize["name"] == "agentguard.authorize"
    names = [key for key in authorize["attributes"] if key.startswith("gen_ai.")]
    assert sorted(names) == ["gen_ai.agent.name"]
    return theirs, authorize


def calls(spans):
    """The spans that a back end takes for tool calls."""
    return [s for s in spans if s["attributes"].get("gen_ai.operation.name") == "execute_tool"]


@WITH
@SYNC
def test_their_spans_are_enriched_and_not_doubled(played, instrumentor, sync):
    spans, traceparents = played(instrumentor, "allowed", sync=sync)
    assert [span["name"] for span in spans if span["scope"] == OURS] == ["agentguard.authorize"]
    assert len(calls(spans)) == len(traceparents) == 1
    look, authorize = of_tool(spans, "look")
    for span in (look, authorize):
        assert span["attributes"]["gen_ai.agent.name"] == "payer"
        assert span["attributes"]["agentguard.principal.id"] == "user:alice"
        assert span["attributes"]["agentguard.policy.decision"] == "allow"
        assert span["attributes"]["agentguard.audit.checkpoint"]
    assert look["attributes"]["agentguard.outcome.status"] == "ok"
    assert [one.split("-")[1:3] for one in traceparents] == [[look["trace"], look["span"]]]
    # of all their spans of chains, the graph's run says whose it is
    chain = look["attributes"]["agentguard.delegation.chain"]
    named = [s for s in spans if s["attributes"].get("agentguard.delegation.chain") == chain]
    (run,) = (span for span in named if span not in (look, authorize))
    assert run["attributes"]["gen_ai.operation.name"] == "invoke_agent"


@WITH
@SYNC
def test_a_sub_agent_that_pauses_is_no_error_in_theirs(played, instrumentor, sync):
    spans, _ = played(instrumentor, "paused", sync=sync)
    for span in of_tool(spans, "ask"):
        assert span["status"] in ("UNSET", "OK")
    assert of_tool(spans, "ask")[0]["attributes"]["agentguard.outcome.status"] == "suspended"
    # the call that waits did not run, so that they have no span of it
    (pay,) = (span for span in spans if span["name"] == "execute_tool pay")
    assert pay["scope"] == OURS
    assert pay["attributes"]["agentguard.approval.status"] == "pending"


@WITH
@SYNC
def test_a_denied_call_is_an_error_in_theirs(played, instrumentor, sync):
    spans, traceparents = played(instrumentor, "denied", sync=sync)
    assert len(calls(spans)) == len(traceparents) == 1
    pay, authorize = of_tool(spans, "pay")
    assert (pay["status"], authorize["status"]) == ("ERROR", "ERROR")
    assert authorize["attributes"]["error.type"] == "policy.denied"
    assert pay["attributes"]["agentguard.policy.decision"] == "deny"
    # OpenLLMetry puts the exception's type there, afterwards
    assert pay["attributes"]["error.type"] in ("policy.denied", "Denied")
