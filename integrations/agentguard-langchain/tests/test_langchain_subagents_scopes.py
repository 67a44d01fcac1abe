"""guard_subagent: what runs in a child has less than its parent, however the child is run."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import operator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool, Tool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, Send, interrupt

from agentguard import ConfigError
from agentguard.errors import DelegationError
from agentguard_langchain import GuardedToolDenied, bind_ahead, guard_subagent, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
READ = ["repo:read"]


async def ran(runnable, given, *options, sync, **more):
    if sync:
        return runnable.invoke(given, *options, **more)
    return await runnable.ainvoke(given, *options, **more)


async def collected(items):
    return [item async for item in items]


def said(state):
    return state["messages"][-1].content


def short(lent):
    """The story without its arguments, sorted: what ran at once has no order."""
    return sorted((one.tool, one.code, one.path, one.scope) for one in lent.story())


def asks(child):
    """A tool that runs ``child``, sync and async."""

    def ask(task: str) -> str:
        """Ask the sub-agent."""
        return said(child.invoke({"messages": [("user", task)]}))

    async def aask(task: str) -> str:
        """Ask the sub-agent."""
        return said(await child.ainvoke({"messages": [("user", task)]}))

    return StructuredTool.from_function(ask, aask, name="ask")


@pytest.fixture
def child(lent):
    """A child that reads and writes for the fixer; ``child.reads`` is what reading says."""

    class Child:
        def __init__(self) -> None:
            self.orchestrator, self.fixer = lent.agents("orchestrator", "fixer")
            self.tools = guard_tools([lent.read, lent.aread, lent.write], self.fixer)
            self.graph = lent.graph(self.tools, name="fixer")
            self.reads = lent.task(("read", {"path": "a"}))
            self.both = lent.task(("read", {"path": "a"}), ("write", {"path": "b"}))
            self.task = {"messages": [("user", self.both)]}

        def only_reading(self, scope=READ):
            return guard_subagent(self.graph, self.fixer, scope=scope)

    return Child()


ONLY_READS = [
    ("read", "allow", "alice>fixer", "repo:read"),
    ("write", "scope.exceeded", "alice>fixer", "repo:read"),
]


# --- less than its parent -----------------------------------------------------------------------


@SYNC
async def test_a_sub_agent_has_its_scope_and_its_parent_keeps_more(lent, child, sync):
    parent = lent.graph(guard_tools([asks(child.only_reading()), lent.write], child.orchestrator))
    with lent.lend():
        calls = lent.asking(("ask", {"task": child.both}), ("write", {"path": "c"}))
        answer = said(await ran(parent, calls, sync=sync))
    assert "content of a" in answer
    assert "wrote c" in answer
    assert "wrote b" not in answer
    whole = "pr:write repo:read secret:read"
    assert short(lent) == [
        ("ask", "allow", "alice>orchestrator", whole),
        ("read", "allow", "alice>orchestrator>fixer", "repo:read"),
        ("write", "allow", "alice>orchestrator", whole),
        ("write", "scope.exceeded", "alice>orchestrator>fixer", "repo:read"),
    ]


@SYNC
async def test_without_it_the_childs_configuration_is_all_that_bounds_it(lent, child, sync):
    """The allowed twin: an agent as a plain tool has its chain as well."""
    parent = lent.graph(guard_tools([asks(child.graph)], child.orchestrator))
    with lent.lend():
        answer = said(await ran(parent, lent.asking(("ask", {"task": child.both})), sync=sync))
    assert answer == "content of a; wrote b"
    assert short(lent)[1:] == [
        ("read", "allow", "alice>orchestrator>fixer", "pr:write repo:read"),
        ("write", "allow", "alice>orchestrator>fixer", "pr:write repo:read"),
    ]


@SYNC
async def test_more_than_there_is_is_refused_and_never_cut_down(lent, child, sync):
    wide, narrow = child.only_reading(["pr:write", "repo:read"]), child.only_reading()
    with lent.lend(scope=READ):
        refused = said(await ran(wide, child.task, sync=sync))
        assert said(await ran(narrow, child.task, sync=sync)).startswith("content of a; Denied")
    assert refused.count("[invalid_scope]") == 2
    assert "the sub-agent fixer is to have more than there is" in refused
    assert short(lent) == [
        ONLY_READS[0],
        ("read", "invalid_scope", "fixer", ""),
        ("write", "invalid_scope", "fixer", ""),
        ONLY_READS[1],
    ]


@SYNC
async def test_a_scope_that_the_childs_configuration_does_not_have_is_not_given(lent, child, sync):
    grabbing = guard_subagent(
        lent.graph(guard_tools([lent.secret, lent.read], child.fixer)),
        child.fixer,
        scope=["secret:read", "repo:read"],
    )
    calls = lent.asking(("secret", {"name": "s"}), ("read", {"path": "a"}))
    with lent.lend():
        await ran(grabbing, calls, sync=sync)
    assert short(lent) == [
        ONLY_READS[0],
        ("secret", "scope.exceeded", "alice>fixer", "repo:read"),
    ]


@SYNC
async def test_no_scope_is_none(lent, child, sync):
    with lent.lend():
        await ran(child.only_reading([]), child.task, sync=sync)
        await ran(child.only_reading(), child.task, sync=sync)
    assert {one[1:] for one in short(lent) if one[3] == ""} == {
        ("scope.exceeded", "alice>fixer", "")
    }
    assert [one for one in short(lent) if one[3]] == ONLY_READS


@SYNC
async def test_with_nothing_in_force_the_childs_configuration_decides(lent, child, sync):
    (loner,) = lent.agents("loner")
    own = guard_subagent(lent.graph(guard_tools([lent.read], loner)), loner, scope=READ)
    await ran(child.only_reading(), child.task, sync=sync)
    assert said(await ran(own, lent.asking(("read", {"path": "a"})), sync=sync)) == "content of a"
    assert short(lent) == [
        ("read", "allow", "loner", ""),
        ("read", "delegation.missing", "fixer", ""),
        ("write", "delegation.missing", "fixer", ""),
    ]


@SYNC
@pytest.mark.parametrize("nested", [True, False])
async def test_the_function_of_a_hosted_graph_lends_no_more_than_the_scope(lent, sync, nested):
    """Nothing is in force where the child begins; what is said for each call is narrowed there."""
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    tools = guard_tools([lent.read, lent.write], fixer, delegation=lambda _: lent.lend())
    graph = lent.graph(tools)
    scoped = guard_subagent(graph, fixer, scope=READ)
    if nested:
        scoped = guard_subagent(scoped, orchestrator, scope=["pr:write", "repo:read"])
    calls = lent.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    await ran(scoped, calls, sync=sync)
    assert short(lent) == ONLY_READS
    assert said(await ran(graph, calls, sync=sync)) == "content of a; wrote b"
    with lent.lend("bob"):
        await ran(scoped, calls, sync=sync)
    assert {one[2:4] for one in short(lent)[-2:]} <= {
        ("alice>fixer", "pr:write repo:read"),
        ("alice>fixer", "repo:read"),
    }


def test_the_function_may_not_lend_less_than_the_scope(lent):
    (fixer,) = lent.agents("fixer")
    graph = lent.graph(guard_tools([lent.read], fixer, delegation=lambda _: lent.lend(scope=READ)))
    wide = guard_subagent(graph, fixer, scope=["pr:write", "repo:read"])
    for one in (wide, guard_subagent(graph, fixer, scope=READ)):
        one.invoke(lent.asking(("read", {"path": "a"})))
    assert [one.code for one in lent.story()] == ["invalid_scope", "allow"]


@SYNC
async def test_a_delegation_of_its_own(lent, child, sync):
    bobs = guard_subagent(child.graph, child.fixer.under(lent.lend("bob")), scope=READ)
    await ran(bobs, child.task, sync=sync)
    with lent.lend("alice"):
        await ran(bobs, child.task, sync=sync)
    assert {one[1:] for one in short(lent)} == {
        ("allow", "bob>fixer", "repo:read"),
        ("scope.exceeded", "bob>fixer", "repo:read"),
    }


def test_a_tool_under_a_delegation_of_its_own_has_no_more_than_the_scope(lent):
    (fixer,) = lent.agents("fixer")
    graph = lent.graph(guard_tools([lent.read, lent.write], fixer.under(lent.lend("bob"))))
    calls = lent.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    guard_subagent(graph, fixer, scope=READ).invoke(calls)
    assert {one[1:] for one in short(lent)} == {
        ("allow", "bob>fixer", "repo:read"),
        ("scope.exceeded", "bob>fixer", "repo:read"),
    }
    assert said(graph.invoke(calls)) == "content of a; wrote b"


# --- who acts -----------------------------------------------------------------------------------


@SYNC
async def test_another_agents_tools_are_refused_in_a_sub_agent(lent, child, sync):
    wrong = lent.graph(guard_tools([lent.read], child.orchestrator))
    right = lent.graph(guard_tools([lent.read], child.fixer))
    calls = lent.asking(("read", {"path": "a"}))
    with lent.lend():
        for one in (wrong, right):
            await ran(guard_subagent(one, child.fixer, scope=READ), calls, sync=sync)
    assert [(one.code, one.path) for one in lent.story()] == [
        ("agent.mismatch", "orchestrator"),
        ("allow", "alice>fixer"),
    ]


@pytest.mark.parametrize("name", ["orchestrator", "loner"])
def test_what_a_guarded_call_of_the_sub_agent_runs_acts_for_itself(lent, name):
    """As a plain agent-as-a-tool, whether the call's agent was lent its authority or has it."""
    (agent, tester) = lent.agents(name, "tester")
    (reading,) = guard_tools([lent.read], tester, delegation=lambda _: lent.lend())
    inner = lent.graph([reading])
    scoped = guard_subagent(lent.graph(guard_tools([asks(inner)], agent)), agent, scope=READ)
    task = lent.task(("read", {"path": "a"}))
    if name == "loner":
        scoped.invoke(lent.asking(("ask", {"task": task})))
        paths = ["loner", "alice>tester"]
    else:
        with lent.lend():
            scoped.invoke(lent.asking(("ask", {"task": task})))
        paths = ["alice>orchestrator", "alice>orchestrator>tester"]
    assert [(one.code, one.path) for one in lent.story()] == [("allow", path) for path in paths]


# --- nested, parallel, handed off ---------------------------------------------------------------


@SYNC
async def test_sub_agents_of_sub_agents(lent, child, sync):
    (tester,) = lent.agents("tester")
    testing = lent.graph(guard_tools([lent.read, lent.write], tester))
    wide = guard_subagent(testing, tester, scope=["pr:write", "repo:read"])
    narrow = guard_subagent(testing, tester, scope=READ)
    middle = [
        guard_subagent(lent.graph(guard_tools([asks(one)], child.fixer)), child.fixer, scope=READ)
        for one in (narrow, wide)
    ]
    with lent.lend():
        for one in middle:
            parent = lent.graph(guard_tools([asks(one)], child.orchestrator))
            task = lent.task(("ask", {"task": child.both}))
            await ran(parent, lent.asking(("ask", {"task": task})), sync=sync)
    whole = "pr:write repo:read secret:read"
    path = "alice>orchestrator>fixer"
    assert short(lent) == sorted(
        [
            *2 * [("ask", "allow", "alice>orchestrator", whole), ("ask", "allow", path, READ[0])],
            ("read", "allow", f"{path}>tester", "repo:read"),
            ("write", "scope.exceeded", f"{path}>tester", "repo:read"),
            ("read", "invalid_scope", "tester", ""),
            ("write", "invalid_scope", "tester", ""),
        ]
    )


@SYNC
async def test_a_chain_goes_as_deep_as_it_may(lent, child, sync):
    parent = lent.graph(guard_tools([asks(child.only_reading())], child.orchestrator))
    for depth in (2, 3):
        with lent.lend(max_depth=depth):
            await ran(parent, lent.asking(("ask", {"task": child.reads})), sync=sync)
    assert [(one.tool, one.code) for one in lent.story()] == [
        ("ask", "allow"),
        ("read", "delegation.depth"),
        ("ask", "allow"),
        ("read", "allow"),
    ]


class Fan(MessagesState):
    """Tasks, and what became of them."""

    tasks: list[str]
    done: Annotated[list[str], operator.add]


@SYNC
async def test_children_at_once_by_send_each_have_their_own_scope(lent, child, sync):
    (tester,) = lent.agents("tester")
    testing = lent.graph(guard_tools([lent.read, lent.write], tester))
    kinds = {
        "reader": child.only_reading(),
        "writer": child.only_reading(["pr:write"]),
        "tester": guard_subagent(testing, tester, scope=READ),
    }
    graph = StateGraph(Fan)
    for name, kind in kinds.items():
        graph.add_node(name, kind)
    sends = [Send(name, child.task) for _ in range(5) for name in kinds]
    graph.add_conditional_edges(START, lambda _: sends, list(kinds))
    with lent.lend():
        await ran(graph.compile(), {"messages": [], "tasks": []}, sync=sync)
    assert short(lent) == sorted(
        5
        * [
            *ONLY_READS,
            ("read", "scope.exceeded", "alice>fixer", "pr:write"),
            ("write", "allow", "alice>fixer", "pr:write"),
            ("read", "allow", "alice>tester", "repo:read"),
            ("write", "scope.exceeded", "alice>tester", "repo:read"),
        ]
    )


@SYNC
async def test_a_tool_node_runs_children_at_once(lent, child, sync):
    reader, writer = asks(child.only_reading()), asks(child.only_reading(["pr:write"]))
    writer.name = "ask_writer"
    parent = lent.graph(guard_tools([reader, writer], child.orchestrator))
    calls = [(name, {"task": child.both}) for _ in range(4) for name in ("ask", "ask_writer")]
    with lent.lend():
        await ran(parent, lent.asking(*calls), sync=sync)
    found = {one for one in short(lent) if not one[0].startswith("ask")}
    path = "alice>orchestrator>fixer"
    assert found == {
        ("read", "allow", path, "repo:read"),
        ("write", "scope.exceeded", path, "repo:read"),
        ("read", "scope.exceeded", path, "pr:write"),
        ("write", "allow", path, "pr:write"),
    }
    assert len(lent.story()) == 8 + 16


def handing_off(lent, child, orchestrator_tools):
    """A child whose tool hands off to a node of its parent's graph."""

    @tool
    def hand_off(state: Annotated[dict, InjectedState]) -> Command:
        """Hand off."""
        return Command(goto="after", graph=Command.PARENT, update={"done": ["handed off"]})

    tools = guard_tools([hand_off, lent.write], child.fixer)
    scoped = guard_subagent(lent.graph(tools), child.fixer, scope=READ)

    def after(_state):
        return {"done": [one.invoke({"path": "p"}) for one in orchestrator_tools]}

    graph = StateGraph(Fan)
    graph.add_node("child", scoped, destinations=("after",))
    graph.add_node("after", after)
    graph.add_edge(START, "child")
    return graph.compile()


@SYNC
async def test_a_hand_off_ends_the_childs_scope(lent, child, sync):
    tools = guard_tools([lent.write], child.orchestrator)
    graph = handing_off(lent, child, tools)
    calls = {**lent.asking(("hand_off", {})), "tasks": []}
    with lent.lend(scope=["pr:write", "repo:read"]):
        state = await ran(graph, calls, sync=sync)
    assert state["done"] == ["handed off", "wrote p"]
    assert [one[2:] for one in lent.story()] == [
        ("allow", "alice>fixer", "repo:read"),
        ("allow", "alice>orchestrator", "pr:write repo:read"),
    ]


@SYNC
async def test_a_hand_off_gives_the_parent_no_more_than_it_had(lent, child, sync):
    graph = handing_off(lent, child, guard_tools([lent.write], child.orchestrator))
    with lent.lend(scope=READ), pytest.raises(GuardedToolDenied) as denied:
        await ran(graph, {**lent.asking(("hand_off", {})), "tasks": []}, sync=sync)
    assert denied.value.code == "scope.exceeded"
    with pytest.raises(GuardedToolDenied) as denied:  # and afterwards there is nothing
        child.tools[0].invoke({"path": "a"})
    assert denied.value.code == "delegation.missing"


@SYNC
async def test_after_an_interrupt_the_scope_is_in_force_again(lent, child, sync):
    def ask(x: int) -> str:
        """Ask a person, and write."""
        return interrupt("go on?")

    tools = guard_tools([ask, lent.read, lent.write], child.fixer)
    inner = guard_subagent(lent.graph(tools), child.fixer, scope=READ)
    graph = StateGraph(MessagesState)
    graph.add_node("child", inner)

    def again(_state):
        return lent.asking(("read", {"path": "a"}), ("write", {"path": "b"}))

    graph.add_node("again", again)
    graph.add_node("child_again", inner)
    graph.add_edge(START, "child")
    graph.add_edge("child", "again")
    graph.add_edge("again", "child_again")
    compiled = graph.compile(checkpointer=InMemorySaver())
    with lent.lend() as alice:
        paused = await ran(compiled, lent.asking(("ask", {"x": 1})), CONFIG, sync=sync)
        stored = alice.dumps()
    assert "__interrupt__" in paused
    with lent.guard.resume(stored):
        await ran(compiled, Command(resume="yes"), CONFIG, sync=sync)
    assert short(lent) == [("ask", "allow", "alice>fixer", "repo:read")] * 2 + ONLY_READS


# --- streams ------------------------------------------------------------------------------------


def test_whoever_consumes_a_stream_keeps_what_he_has(lent, child):
    (writing,) = guard_tools([lent.write], child.orchestrator)
    with lent.lend():
        for item in child.only_reading().stream(child.task, stream_mode="updates"):
            assert item
            writing.invoke({"path": "c"})
    assert {one for one in short(lent) if one[2] != "alice>orchestrator"} == set(ONLY_READS)
    assert {one.scope for one in lent.story() if one.path == "alice>orchestrator"} == {
        "pr:write repo:read secret:read"
    }


async def test_whoever_consumes_an_async_stream_keeps_what_he_has(lent, child):
    (writing,) = guard_tools([lent.write], child.orchestrator)
    with lent.lend():
        async for item in child.only_reading().astream(child.task, stream_mode="updates"):
            assert item
            await writing.ainvoke({"path": "c"})
    assert {one for one in short(lent) if one[2] != "alice>orchestrator"} == set(ONLY_READS)


def test_a_stream_has_what_was_in_force_where_it_began(lent, child):
    """Another thread, and another user, that ask for its items lend it nothing."""
    with lent.lend("alice"):
        items = child.only_reading().stream(child.task, stream_mode="updates")
        with ThreadPoolExecutor(1) as pool:
            assert "content of a" in str(pool.submit(list, items).result())
        items = child.only_reading().stream(child.task, stream_mode="updates")
        with lent.lend("mallory"):
            assert "content of a" in str(list(items))
    assert short(lent) == sorted(2 * ONLY_READS)
    items = child.only_reading().stream(child.task, stream_mode="updates")
    with lent.lend("mallory"):
        assert "[delegation.missing]" in str(list(items))


async def test_an_async_stream_that_other_tasks_consume(lent, child):
    async with lent.lend("alice"):
        items = child.only_reading().astream(child.task, stream_mode="updates")
        async with lent.lend("mallory"):
            found = [await asyncio.create_task(anext(items)) for _ in range(2)]
            found += await asyncio.create_task(collected(items), context=contextvars.Context())
    assert "content of a" in str(found)
    assert short(lent) == ONLY_READS


async def test_a_stream_under_a_delegation_is_begun_there(lent, child):
    """One that began elsewhere would go on with what was in force there."""
    scoped = child.only_reading()
    options = {"stream_mode": "updates"}
    for begun in (scoped.stream(child.task, **options), scoped.astream(child.task, **options)):
        with pytest.raises(ConfigError, match="lambda") as refused:
            lent.lend("alice").iterate(begun)
        assert refused.value.code == "delegation.generator"
    with lent.lend("bob"):
        assert list(lent.lend("alice").iterate(lambda: scoped.stream(child.task, **options)))
        astream = lent.lend("alice").iterate(lambda: scoped.astream(child.task, **options))
        assert await collected(astream)
    allowed = [one.path for one in lent.story() if one.code == "allow"]
    assert allowed == ["alice>fixer"] * 2


def test_a_stream_that_outlives_its_block_has_ended(lent, child):
    with lent.lend():
        items = child.only_reading().stream(child.task, stream_mode="updates")
        next(items)
    assert "content of a" not in str(list(items))
    assert {one[:3] for one in short(lent)} == {
        ("read", "delegation.ended", "fixer"),
        ("write", "delegation.ended", "fixer"),
    }


async def test_an_async_stream_that_outlives_the_call_it_began_in_has_ended(lent, child):
    began = []

    @tool
    async def begin() -> str:
        """Begin."""
        began.append(child.only_reading().astream(child.task, stream_mode="updates"))
        return str(await anext(began[0]))

    with lent.lend():
        await guard_tools([begin], child.orchestrator)[0].ainvoke({})
        assert "content of a" not in str(await collected(began[0]))
    assert {one[:2] for one in short(lent)} == {
        ("begin", "allow"),
        ("read", "delegation.ended"),
        ("write", "delegation.ended"),
    }


def test_a_stream_that_is_abandoned_leaves_nothing(lent, child):
    reading, writing = guard_tools([lent.read, lent.write], child.orchestrator)
    with lent.lend():
        items = child.only_reading().stream(child.task, stream_mode="updates")
        next(items)
        assert writing.invoke({"path": "c"}) == "wrote c"
        contextvars.Context().run(items.close)
        items = child.only_reading().stream(child.task, stream_mode="updates")
        next(items)
        del items
        gc.collect()
        assert writing.invoke({"path": "d"}) == "wrote d"
    with pytest.raises(GuardedToolDenied) as denied:
        reading.invoke({"path": "e"})
    assert denied.value.code == "delegation.missing"


async def test_an_async_stream_that_is_abandoned_leaves_nothing(lent, child):
    (writing,) = guard_tools([lent.write], child.orchestrator)
    async with lent.lend():
        items = child.only_reading().astream(child.task, stream_mode="updates")
        await anext(items)
        await asyncio.create_task(items.aclose(), context=contextvars.Context())
        items = child.only_reading().astream(child.task, stream_mode="updates")
        await anext(items)
        del items
        gc.collect()
        await asyncio.sleep(0)  # the event loop closes the generator in a task of the loop's own
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert await writing.ainvoke({"path": "c"}) == "wrote c"


class Streaming(Runnable):
    """Reads as it begins and as it is closed, and leaves its context behind."""

    def __init__(self, reading):
        self.reading = reading
        self.left: list[contextvars.Context] = []

    def invoke(self, input, config=None, **_options):  # noqa: A002
        raise NotImplementedError

    def stream(self, input, config=None, **_options):  # noqa: A002
        try:
            yield self.reading.invoke({"path": "first"})
            yield self.reading.invoke({"path": "second"})
        finally:
            self.reading.invoke({"path": "last"})
            self.left.append(contextvars.copy_context())

    async def astream(self, input, config=None, **_options):  # noqa: A002
        for item in self.stream(input):
            yield item


@SYNC
@pytest.mark.parametrize("closed", [True, False])
async def test_a_stream_ends_with_its_sub_agent_when_it_is_closed_or_done(
    lent, child, sync, closed
):
    streaming = Streaming(child.tools[0])
    scoped = guard_subagent(streaming, child.fixer, scope=READ)
    with lent.lend():
        items = scoped.stream("x") if sync else scoped.astream("x")
        if not closed:
            assert len(list(items) if sync else await collected(items)) == 2
        elif sync:
            next(items)
            items.close()
        else:
            await anext(items)
            await items.aclose()
            gc.collect()
        with pytest.raises(GuardedToolDenied) as denied:
            streaming.left[0].run(streaming.reading.invoke, {"path": "late"})
    assert denied.value.code == "delegation.ended"
    values = ["first", "last"] if closed else ["first", "second", "last"]
    expected = [(value, "allow", "alice>fixer", "repo:read") for value in values]
    assert [one[1:] for one in lent.story()[:-1]] == expected


async def test_time_outs_and_cancellations_reach_into_a_stream(lent, child):
    stopped, begun = [], asyncio.Event()
    limits: list[asyncio.Timeout] = []

    @tool
    async def hang() -> str:
        """Hang, until the time is up that is up now."""
        begun.set()
        for limit in limits:
            limit.reschedule(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            stopped.append("cancelled")
            raise
        return "never"

    graph = lent.graph(guard_tools([hang], child.fixer))
    scoped = guard_subagent(graph, child.fixer, scope=READ)
    (reading,) = guard_tools([lent.aread], child.orchestrator)

    async def run():
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await collected(scoped.astream(lent.asking(("hang", {}))))

    async with lent.lend():
        with pytest.raises(TimeoutError):
            await run()
        begun.clear()
        limits.clear()
        running = asyncio.create_task(collected(scoped.astream(lent.asking(("hang", {})))))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await reading.ainvoke({"path": "a"}) == "content of a"
    assert stopped == ["cancelled"] * 2


async def test_a_task_that_outlives_its_sub_agent_has_nothing(lent):
    """Not even what a function says: it ran as the sub-agent, and that has ended."""
    (fixer,) = lent.agents("fixer")
    (reading,) = guard_tools([lent.aread], fixer, delegation=lambda _: lent.lend())
    left, gone = [], asyncio.Event()

    async def later():
        await gone.wait()
        return await reading.ainvoke({"path": "late"})

    async def begin(_given):
        left.append(asyncio.create_task(later()))
        return await reading.ainvoke({"path": "in time"})

    scoped = guard_subagent(RunnableLambda(begin), fixer, scope=READ)
    assert await scoped.ainvoke({}) == "content of in time"
    gone.set()
    with pytest.raises(GuardedToolDenied) as denied:
        await left[0]
    assert denied.value.code == "delegation.ended"


# --- a graph stays a graph ----------------------------------------------------------------------


async def test_a_graph_stays_what_it_was(lent, child):
    scoped = child.only_reading()
    assert isinstance(scoped, CompiledStateGraph)
    assert type(scoped).__name__ == "CompiledStateGraph"
    assert scoped.name == "fixer"
    assert scoped.get_graph().to_json() == child.graph.get_graph().to_json()
    assert scoped.get_input_jsonschema() == child.graph.get_input_jsonschema()
    with lent.lend():
        for mode in ("values", "updates", "messages", "debug", ["updates", "custom"]):
            assert list(scoped.stream(child.task, stream_mode=mode))
            assert await collected(scoped.astream(child.task, stream_mode=mode))
        await collected(scoped.astream_events(child.task, version="v2"))
        for state in (*scoped.batch([child.task] * 3), *await scoped.abatch([child.task] * 3)):
            assert said(state).startswith("content of a; Denied")
        for copied in (scoped.with_config(tags=["x"]), scoped.copy(), scoped | said):
            copied.invoke(child.task)
        once = {"input": child.task, "config": CONFIG, "context": None}
        assert said(scoped.invoke(**once)).startswith("content of a; Denied")
    assert {one[1] for one in short(lent) if one[0] == "read"} == {"allow"}
    assert {one[1] for one in short(lent) if one[0] == "write"} == {"scope.exceeded"}
    assert {one.path for one in lent.story()} == {"alice>fixer"}


@SYNC
async def test_it_says_the_same_as_the_child(lent, child, sync):
    with lent.lend():
        expected = await ran(child.graph, child.task, sync=sync)
        wide = child.only_reading(["pr:write", "repo:read"])
        assert said(await ran(wide, child.task, sync=sync)) == said(expected)
        assert len((await ran(wide, child.task, sync=sync))["messages"]) == 5
    assert said(expected) == "content of a; wrote b"


@SYNC
async def test_a_node_of_a_graph_stays_a_subgraph(lent, child, sync):
    graph = StateGraph(MessagesState)
    graph.add_node("child", child.only_reading())
    graph.add_edge(START, "child")
    graph.add_edge("child", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    assert [name for name, _graph in compiled.get_subgraphs()] == ["child"]
    with lent.lend():
        options = {"subgraphs": True, "stream_mode": "updates"}
        items = (
            list(compiled.stream(child.task, CONFIG, **options))
            if sync
            else await collected(compiled.astream(child.task, CONFIG, **options))
        )
    assert {len(space) for space, _item in items} == {0, 1}
    assert short(lent) == ONLY_READS
    assert len(compiled.get_state(CONFIG).values["messages"]) == 5


# --- other Runnables ----------------------------------------------------------------------------


@pytest.fixture
def chain(lent, child):
    """A child that is no graph: it makes two calls, and says them one by one."""
    reading, _areading, writing = child.tools

    def work(given):
        for one in (reading, writing):
            try:
                yield f"{given}: {one.invoke({'path': given})}"
            except GuardedToolDenied as denied:
                yield f"{given}: {denied.code}"

    def each(items):
        for given in items:
            yield from work(given)

    async def aeach(items):
        async for given in items:
            for found in work(given):
                yield found

    return RunnableGenerator(each, aeach)


async def test_any_runnable_runs_as_before_with_less(lent, child, chain):
    scoped = guard_subagent(chain, child.fixer, scope=READ)
    expected = ["x: content of x", "x: scope.exceeded"]
    (writing,) = guard_tools([lent.write], child.orchestrator)
    with lent.lend():
        assert list(chain.stream("x")) == ["x: content of x", "x: wrote x"]
        assert list(scoped.stream("x")) == expected
        assert await collected(scoped.astream("x")) == expected
        assert scoped.invoke("x") == await scoped.ainvoke("x") == "".join(expected)
        assert (
            scoped.batch(["x", "x"]) == await scoped.abatch(["x", "x"]) == 2 * ["".join(expected)]
        )
        configured = scoped.with_config(tags=["t"])
        assert configured.invoke("x") == "".join(expected)
        assert (scoped | str.upper).invoke("x") == "".join(expected).upper()
        assert (RunnableLambda(str.lower) | scoped).invoke("X") == "".join(expected)
        assert list((RunnableLambda(str.lower) | scoped).stream("X")) == expected
        events = [e async for e in scoped.astream_events("x", version="v2")]
        assert events
        for _item in scoped.stream("x"):
            assert writing.invoke({"path": "c"}) == "wrote c"
    assert scoped.get_name() == chain.get_name()
    assert scoped.get_graph().to_json() == chain.get_graph().to_json()
    assert scoped.input_schema.model_json_schema() == chain.input_schema.model_json_schema()
    assert scoped.output_schema.model_json_schema() == chain.output_schema.model_json_schema()
    assert scoped.config_specs == chain.config_specs
    assert "guard_subagent" in repr(scoped)


def test_the_config_reaches_a_runnable(lent, child):
    def tell(given, config: RunnableConfig):
        return (given, config["configurable"]["thread_id"])

    scoped = guard_subagent(RunnableLambda(tell), child.fixer, scope=READ)
    assert scoped.invoke("x", CONFIG) == ("x", "t1")


# --- tools that run one -------------------------------------------------------------------------


class Asking(BaseTool):
    """A tool class of one's own that runs a child."""

    name: str = "asking"
    description: str = "Ask."
    child: Any

    def _run(self, task: str, config: RunnableConfig, run_manager=None) -> str:
        return said(self.child.invoke({"messages": [("user", task)]}))


class AskingBoth(Asking):
    name: str = "asking_both"

    async def _arun(self, task: str, run_manager=None) -> str:
        return said(await self.child.ainvoke({"messages": [("user", task)]}))


class AskingObject:
    """A callable object."""

    def __init__(self, child):
        self.child = child

    def __call__(self, task: str) -> str:
        """Ask."""
        return said(self.child.invoke({"messages": [("user", task)]}))


def ask_partly(child, task: str, config: RunnableConfig) -> str:
    """Ask."""
    assert config["configurable"]["thread_id"] == "t1"
    return said(child.invoke({"messages": [("user", task)]}))


async def ask_async(child, task: str) -> str:
    """Ask."""
    return said(await child.ainvoke({"messages": [("user", task)]}))


class Task(MessagesState):
    task: str


SCHEMA = {"type": "object", "properties": {"task": {"type": "string"}}, "required": ["task"]}


TOOLS = {
    "function": asks,
    "class": lambda child: Asking(child=child),
    "class-both": lambda child: AskingBoth(child=child),
    "object": lambda child: StructuredTool.from_function(
        AskingObject(child), name="o", description="Ask.", args_schema=SCHEMA
    ),
    "partial": lambda child: StructuredTool.from_function(
        functools.partial(ask_partly, child), name="p", description="Ask.", args_schema=SCHEMA
    ),
    "async": lambda child: StructuredTool.from_function(
        coroutine=functools.partial(ask_async, child),
        name="a",
        description="A.",
        args_schema=SCHEMA,
    ),
    "string": lambda child: Tool("s", AskingObject(child), "Ask."),
    "runnable": lambda child: (
        RunnableLambda(lambda given: {"messages": [("user", given["task"])]}) | child | said
    ).as_tool(name="r", description="Ask.", arg_types={"task": str}),
}


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize("kind", TOOLS)
@SYNC
async def test_a_tool_that_runs_a_child(lent, child, kind, sync):
    sync = sync and kind != "async"
    made = TOOLS[kind](child.graph)
    scoped = guard_subagent(made, child.fixer, scope=READ)
    assert type(scoped).__name__ == type(made).__name__
    assert scoped.args == made.args
    plain, guarded = (guard_tools([one], child.orchestrator)[0] for one in (made, scoped))
    given = child.both if kind == "string" else {"task": child.both}
    assert bind_ahead(guarded, given) == bind_ahead(plain, given)
    with lent.lend():
        assert await ran(plain, given, CONFIG, sync=sync) == "content of a; wrote b"
        answer = await ran(guarded, given, CONFIG, sync=sync)
    assert answer.startswith("content of a; Denied")
    outer = [call for call in lent.log.calls() if call.tool == made.name]
    assert len({call.predicate["tool"]["digest"] for call in outer}) == 1
    inner = sorted(one[1:] for one in short(lent) if one[0] == "write")
    path = "alice>orchestrator>fixer"
    assert inner == [
        ("allow", path, "pr:write repo:read"),
        ("scope.exceeded", path, "repo:read"),
    ]


@SYNC
async def test_a_tool_that_is_not_guarded_itself(lent, child, sync):
    scoped = guard_subagent(asks(child.graph), child.fixer, scope=READ)
    with lent.lend():
        parent = lent.graph([scoped])
        await ran(parent, lent.asking(("ask", {"task": child.both})), sync=sync)
    assert short(lent) == ONLY_READS


# --- what is refused at once --------------------------------------------------------------------


def test_a_guarded_tool_is_to_be_guarded_outside(lent, child):
    (guarded,) = guard_tools([asks(child.graph)], child.orchestrator)
    with pytest.raises(ConfigError, match="guard what comes back") as refused:
        guard_subagent(guarded, child.fixer, scope=READ)
    assert refused.value.code == "tool.guarded"


def test_a_tool_with_a_way_in_of_its_own_is_refused(child):
    traced = asks(child.graph)
    inner = traced.invoke
    object.__setattr__(traced, "invoke", inner)
    with pytest.raises(ConfigError, match="its invoke was replaced on the object") as refused:
        guard_subagent(traced, child.fixer, scope=READ)
    assert refused.value.code == "tool.unguardable"


def test_what_can_not_be_wrapped(lent, child):
    builder = StateGraph(MessagesState)
    with pytest.raises(ConfigError, match="compile the graph first"):
        guard_subagent(builder, child.fixer, scope=READ)
    with pytest.raises(ConfigError, match="expected a compiled graph"):
        guard_subagent(lambda given: given, child.fixer, scope=READ)
    with pytest.raises(ConfigError, match="expected the Agent"):
        guard_subagent(child.graph, "fixer", scope=READ)
    for scope in ("repo:read", ["repo read"], [1]):
        with pytest.raises(DelegationError) as refused:
            guard_subagent(child.graph, child.fixer, scope=scope)
        assert refused.value.code == "scope.malformed"
