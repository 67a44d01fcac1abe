"""What ``guard_subagent`` wraps: graphs, other Runnables and tools, which stay what they are."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from delegation_team import ONLY_READS, READ, decision_rows, tool_asking
from graph_runs import CONFIG, SYNC, collect, invoke, last_text
from langchain_core.runnables import RunnableConfig, RunnableGenerator, RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agentguard import ConfigError
from agentguard.errors import DelegationError
from agentguard_langchain import GuardedToolDenied, bind_ahead, guard_subagent, guard_tools

# --- a graph stays a graph ----------------------------------------------------------------------


async def test_a_graph_stays_what_it_was(team, child):
    scoped = child.only_reading()
    assert isinstance(scoped, CompiledStateGraph)
    assert type(scoped).__name__ == "CompiledStateGraph"
    assert scoped.name == "fixer"
    assert scoped.get_graph().to_json() == child.graph.get_graph().to_json()
    assert scoped.get_input_jsonschema() == child.graph.get_input_jsonschema()
    with team.lend():
        for mode in ("values", "updates", "messages", "debug", ["updates", "custom"]):
            assert list(scoped.stream(child.task, stream_mode=mode))
            assert await collect(scoped.astream(child.task, stream_mode=mode))
        await collect(scoped.astream_events(child.task, version="v2"))
        for state in (*scoped.batch([child.task] * 3), *await scoped.abatch([child.task] * 3)):
            assert last_text(state).startswith("content of a; Denied")
        for copied in (scoped.with_config(tags=["x"]), scoped.copy(), scoped | last_text):
            copied.invoke(child.task)
        once = {"input": child.task, "config": CONFIG, "context": None}
        assert last_text(scoped.invoke(**once)).startswith("content of a; Denied")
    assert {one[1] for one in decision_rows(team) if one[0] == "read"} == {"allow"}
    assert {one[1] for one in decision_rows(team) if one[0] == "write"} == {"scope.exceeded"}
    assert {one.path for one in team.rows()} == {"alice>fixer"}


@SYNC
async def test_it_says_the_same_as_the_child(team, child, sync):
    with team.lend():
        expected = await invoke(child.graph, child.task, sync=sync)
        wide = child.only_reading(["pr:write", "repo:read"])
        assert last_text(await invoke(wide, child.task, sync=sync)) == last_text(expected)
        assert len((await invoke(wide, child.task, sync=sync))["messages"]) == 5
    assert last_text(expected) == "content of a; wrote b"


@SYNC
async def test_a_node_of_a_graph_stays_a_subgraph(team, child, sync):
    graph = StateGraph(MessagesState)
    graph.add_node("child", child.only_reading())
    graph.add_edge(START, "child")
    graph.add_edge("child", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    assert [name for name, _graph in compiled.get_subgraphs()] == ["child"]
    with team.lend():
        options = {"subgraphs": True, "stream_mode": "updates"}
        items = (
            list(compiled.stream(child.task, CONFIG, **options))
            if sync
            else await collect(compiled.astream(child.task, CONFIG, **options))
        )
    assert {len(space) for space, _item in items} == {0, 1}
    assert decision_rows(team) == ONLY_READS
    assert len(compiled.get_state(CONFIG).values["messages"]) == 5


# --- other Runnables ----------------------------------------------------------------------------


@pytest.fixture
def chain(team, child):
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
            for text in work(given):
                yield text

    return RunnableGenerator(each, aeach)


async def test_any_runnable_runs_as_before_with_less(team, child, chain):
    scoped = guard_subagent(chain, child.fixer, scope=READ)
    expected = ["x: content of x", "x: scope.exceeded"]
    (writing,) = guard_tools([team.write], child.orchestrator)
    with team.lend():
        assert list(chain.stream("x")) == ["x: content of x", "x: wrote x"]
        assert list(scoped.stream("x")) == expected
        assert await collect(scoped.astream("x")) == expected
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


def test_the_config_reaches_a_runnable(team, child):
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
        return last_text(self.child.invoke({"messages": [("user", task)]}))


class AskingBoth(Asking):
    name: str = "asking_both"

    async def _arun(self, task: str, run_manager=None) -> str:
        return last_text(await self.child.ainvoke({"messages": [("user", task)]}))


class AskingObject:
    """A callable object."""

    def __init__(self, child):
        self.child = child

    def __call__(self, task: str) -> str:
        """Ask."""
        return last_text(self.child.invoke({"messages": [("user", task)]}))


def ask_partly(child, task: str, config: RunnableConfig) -> str:
    """Ask."""
    assert config["configurable"]["thread_id"] == "t1"
    return last_text(child.invoke({"messages": [("user", task)]}))


async def ask_async(child, task: str) -> str:
    """Ask."""
    return last_text(await child.ainvoke({"messages": [("user", task)]}))


class Task(MessagesState):
    task: str


SCHEMA = {"type": "object", "properties": {"task": {"type": "string"}}, "required": ["task"]}


TOOLS = {
    "function": tool_asking,
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
        RunnableLambda(lambda given: {"messages": [("user", given["task"])]}) | child | last_text
    ).as_tool(name="r", description="Ask.", arg_types={"task": str}),
}


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize("kind", TOOLS)
@SYNC
async def test_a_tool_that_runs_a_child(team, child, kind, sync):
    sync = sync and kind != "async"
    unscoped = TOOLS[kind](child.graph)
    scoped = guard_subagent(unscoped, child.fixer, scope=READ)
    assert type(scoped).__name__ == type(unscoped).__name__
    assert scoped.args == unscoped.args
    plain, guarded = (guard_tools([one], child.orchestrator)[0] for one in (unscoped, scoped))
    given = child.both if kind == "string" else {"task": child.both}
    assert bind_ahead(guarded, given) == bind_ahead(plain, given)
    with team.lend():
        assert await invoke(plain, given, CONFIG, sync=sync) == "content of a; wrote b"
        answer = await invoke(guarded, given, CONFIG, sync=sync)
    assert answer.startswith("content of a; Denied")
    outer = [call for call in team.log.calls() if call.tool == unscoped.name]
    assert len({call.predicate["tool"]["digest"] for call in outer}) == 1
    inner = sorted(one[1:] for one in decision_rows(team) if one[0] == "write")
    path = "alice>orchestrator>fixer"
    assert inner == [
        ("allow", path, "pr:write repo:read"),
        ("scope.exceeded", path, "repo:read"),
    ]


@SYNC
async def test_a_tool_that_is_not_guarded_itself(team, child, sync):
    scoped = guard_subagent(tool_asking(child.graph), child.fixer, scope=READ)
    with team.lend():
        parent = team.graph([scoped])
        await invoke(parent, team.asking(("ask", {"task": child.both})), sync=sync)
    assert decision_rows(team) == ONLY_READS


# --- what is refused at once --------------------------------------------------------------------


def test_a_guarded_tool_is_to_be_guarded_outside(team, child):
    (guarded,) = guard_tools([tool_asking(child.graph)], child.orchestrator)
    with pytest.raises(ConfigError, match="guard what comes back") as refused:
        guard_subagent(guarded, child.fixer, scope=READ)
    assert refused.value.code == "tool.guarded"


def test_a_tool_with_a_way_in_of_its_own_is_refused(child):
    traced = tool_asking(child.graph)
    inner = traced.invoke
    object.__setattr__(traced, "invoke", inner)
    with pytest.raises(ConfigError, match="its invoke was replaced on the object") as refused:
        guard_subagent(traced, child.fixer, scope=READ)
    assert refused.value.code == "tool.unguardable"


def test_what_can_not_be_wrapped(team, child):
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
