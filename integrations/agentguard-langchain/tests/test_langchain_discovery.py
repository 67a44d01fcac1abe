"""``find_tools`` and ``unguarded``: each way in which a graph comes to run a tool."""

from __future__ import annotations

import functools

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard import ConfigError, Decision, Guard
from agentguard_langchain import (
    GuardMiddleware,
    find_tools,
    guard_edge,
    guard_subagent,
    guard_tool_node,
    guard_tools,
    unguarded,
)


class Mute(BaseChatModel):
    """A model that is never asked."""

    @property
    def _llm_type(self):
        return "mute"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, *args, **kwargs):
        raise NotImplementedError


@tool
def read(path: str) -> str:
    """Read."""
    return path


@tool
def write(path: str) -> str:
    """Write."""
    return path


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow()) as made:
        yield made


@pytest.fixture
def coder(guard):
    return guard.new_agent("coder")


@pytest.fixture
def helper(guard):
    return guard.new_agent("helper")


def found(graph):
    return [(" > ".join(tool.where), tool.name, *tool.agents) for tool in find_tools(graph)]


def an_agent(*tools, middleware=(), name=None):
    return create_agent(Mute(), list(tools), middleware=list(middleware), name=name)


class Wrapping(AgentMiddleware):
    """Another middleware around tool calls."""

    def wrap_tool_call(self, request, handler):
        return handler(request)

    async def awrap_tool_call(self, request, handler):
        return await handler(request)


def test_an_agent_without_a_guard():
    graph = an_agent(read, write)
    assert unguarded(graph) == ["tools > read", "tools > write"]
    assert found(an_agent(read, middleware=[Wrapping()])) == [("tools", "read")]


def test_an_agent_with_the_middleware_or_with_guarded_tools(coder):
    guarding = GuardMiddleware(coder)
    for graph in (
        an_agent(read, middleware=[guarding]),
        an_agent(read, middleware=[Wrapping(), guarding]),
        an_agent(*guard_tools([read], coder)),
        an_agent(*guard_tools([read], coder), middleware=[guarding]),
    ):
        assert found(graph) == [("tools", "read", "coder")]
        assert unguarded(graph) == []


def test_tools_that_a_middleware_brings_and_that_a_provider_runs(coder):
    class Bringing(AgentMiddleware):
        tools = (write,)

    search = {"type": "web_search_20250305", "name": "web_search"}
    assert unguarded(an_agent(read, search, middleware=[Bringing()])) == [
        "tools > write",
        "tools > read",
        "model > web_search",
    ]
    guarded = an_agent(*guard_tools([read], coder), search)
    assert unguarded(guarded) == ["model > web_search"]


def by_hand(node):
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda _state: {"messages": []})
    graph.add_node("act", node)
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", guard_edge("act"), ["act", END])
    return graph


def test_graphs_that_are_built_by_hand(coder):
    assert unguarded(by_hand(ToolNode([read])).compile()) == ["act > read"]
    assert unguarded(by_hand(ToolNode([read]))) == ["act > read"]
    assert found(by_hand(guard_tool_node([read], coder))) == [("act", "read", "coder")]
    assert found(by_hand(ToolNode(guard_tools([read], coder)))) == [("act", "read", "coder")]
    assert unguarded(by_hand(RunnableLambda(lambda _s: {}) | ToolNode([read]))) == ["act > read"]


def test_a_guard_of_one_way_to_run_alone_is_none(coder):
    guarded = guard_tool_node([read], coder)
    half = ToolNode([read], awrap_tool_call=guarded._awrap_tool_call)
    assert unguarded(half) == ["read"]
    assert unguarded(ToolNode([read], wrap_tool_call=guarded._wrap_tool_call)) == []


def test_sub_graphs_as_nodes_and_in_the_code_of_nodes(coder, helper):
    child = an_agent(read, middleware=[GuardMiddleware(helper)])
    bare = an_agent(write)

    def run(state):
        return bare.invoke(state)

    class Running:
        def __init__(self, graph):
            self.graph = graph

        def run(self, state):
            return self.graph.invoke(state)

    for node, tools in (
        (child, [("act > tools", "read", "helper")]),
        (guard_subagent(child, helper, scope=["x"]), [("act > tools", "read", "helper")]),
        (run, [("act > tools", "write")]),
        (functools.partial(lambda graph, state: graph.invoke(state), bare), None),
        (Running(bare).run, [("act > tools", "write")]),
        (child.with_config(tags=["a"]), [("act > tools", "read", "helper")]),
    ):
        assert found(by_hand(node)) == (tools or [("act > tools", "write")])


def test_the_graph_that_a_tool_runs(coder, helper):
    children = {"one": an_agent(read), "two": an_agent(*guard_tools([read], helper))}

    def task(which: str) -> str:
        """Let a sub-agent do it: as deepagents has it."""
        return str(children[which].invoke({"messages": []}))

    as_tool = StructuredTool.from_function(task)

    class Asking(BaseTool):
        name: str = "asking"
        description: str = "Ask."
        graph: object

        def _run(self, which: str) -> str:
            return which

    expected = [
        ("tools", "task", "coder"),
        ("tools > task > one > tools", "read"),
        ("tools > task > two > tools", "read", "helper"),
    ]
    assert found(an_agent(as_tool, middleware=[GuardMiddleware(coder)])) == expected
    children["one"], children["two"] = an_agent(read), an_agent(*guard_tools([read], helper))
    assert found(an_agent(*guard_tools([as_tool], coder))) == expected
    lent = guard_subagent(as_tool, helper, scope=["x"])
    assert found(an_agent(*guard_tools([lent], coder))) == expected
    assert found(an_agent(Asking(graph=an_agent(write)))) == [
        ("tools", "asking"),
        ("tools > asking > tools", "write"),
    ]


def test_lists_of_tools_and_what_is_neither(coder):
    def function(path: str) -> str:
        """Be a tool."""
        return path

    assert unguarded([read, function, *guard_tools([write], coder)]) == ["read", "function"]
    assert unguarded(read) == ["read"]
    assert unguarded(function) == ["function"]
    assert unguarded([]) == []
    assert found(guard_tools([write], coder)) == [("", "write", "coder")]
    for wrong in (7, "read", None):
        with pytest.raises(ConfigError, match="expected a graph or a list of tools"):
            find_tools(wrong)


def test_graphs_that_hold_each_other_come_to_an_end():
    graphs = {}

    def again(path: str) -> str:
        """Run the graph in which it stands."""
        return str(graphs["own"].invoke({"messages": [path]}))

    graphs["own"] = an_agent(StructuredTool.from_function(again))
    assert unguarded(graphs["own"]) == ["tools > again"]


def test_the_general_purpose_sub_agent_of_deepagents_is_named(coder):
    graph = create_deep_agent(model=Mute(), tools=[read], middleware=[GuardMiddleware(coder)])
    own = [tool for tool in find_tools(graph) if tool.where == ("tools",)]
    assert {tool.agents for tool in own} == {("coder",)}
    assert {"task", "read", "write_file"} <= {tool.name for tool in own}
    assert "tools > task > general-purpose > tools > read" in unguarded(graph)
    guarded = create_deep_agent(
        model=Mute(), tools=guard_tools([read], coder), middleware=[GuardMiddleware(coder)]
    )
    assert "tools > task > general-purpose > tools > read" not in unguarded(guarded)
    assert "tools > task > general-purpose > tools > write_file" in unguarded(guarded)
