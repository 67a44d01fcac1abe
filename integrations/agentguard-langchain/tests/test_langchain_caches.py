"""LangGraph's caches of nodes and tasks: no user is handed the result of another's guarded call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import CachePolicy

from agentguard import ConfigError
from agentguard_langchain import GuardMiddleware, find_tools, guard_tool_node, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CALL = {"name": "look", "args": {"what": "a"}, "id": "c1", "type": "tool_call"}
ALWAYS: Any = CachePolicy(key_func=lambda _given: b"the same for everybody")


def nested(desk, node, policy):
    inner = StateGraph(MessagesState)
    inner.add_node("tools", node)
    inner.add_edge(START, "tools")
    outer = StateGraph(MessagesState)
    outer.add_node("within", inner.compile(), cache_policy=policy)
    outer.add_edge(START, "within")
    return outer.compile(cache=InMemoryCache())


def plain(desk, node, policy):
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node, cache_policy=policy)
    builder.add_edge(START, "tools")
    return builder.compile(cache=InMemoryCache())


def by_default(desk, node, policy):
    builder = StateGraph(MessagesState)
    builder.set_node_defaults(cache_policy=policy)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    return builder.compile(cache=InMemoryCache())


def agent(desk, _node, policy):
    """An agent of create_agent as the cached node."""
    made = create_agent(desk.model, [desk.look], middleware=[GuardMiddleware(desk.agent)])
    outer = StateGraph(MessagesState)
    outer.add_node("within", made, cache_policy=policy)
    outer.add_edge(START, "within")
    return outer.compile(cache=InMemoryCache())


def functional(desk, _node, policy):
    (look,) = guard_tools([desk.look], desk.agent)

    @task(cache_policy=policy)
    def looks(call):
        return look.invoke(call)

    @task(cache_policy=policy)
    async def alooks(call):
        return await look.ainvoke(call)

    @entrypoint(cache=InMemoryCache())
    def run(_given):
        return {"messages": [looks(CALL).result()]}

    @entrypoint(cache=InMemoryCache())
    async def arun(_given):
        return {"messages": [await alooks(CALL)]}

    run.ainvoke = arun.ainvoke
    return run


def flow(desk, _node, policy):
    """The functional API's entrypoint is cached as a whole."""
    (look,) = guard_tools([desk.look], desk.agent)

    @entrypoint(cache=InMemoryCache(), cache_policy=policy)
    def run(_given):
        return {"messages": [look.invoke(CALL)]}

    @entrypoint(cache=InMemoryCache(), cache_policy=policy)
    async def arun(_given):
        return {"messages": [await look.ainvoke(CALL)]}

    run.ainvoke = arun.ainvoke
    return run


GRAPHS = pytest.mark.parametrize("make", [plain, by_default, nested, agent, functional, flow])
NODES: Any = {
    "guard_tools": lambda desk: ToolNode(guard_tools([desk.look], desk.agent)),
    "guard_tool_node": lambda desk: guard_tool_node([desk.look], desk.agent),
    "handles errors": lambda desk: ToolNode(
        guard_tools([desk.look], desk.agent), handle_tool_errors=True
    ),
}


def given():
    return {"messages": [HumanMessage("[]", id="h"), AIMessage("", id="m", tool_calls=[CALL])]}


async def ran(graph, asked, *, sync):
    return graph.invoke(asked) if sync else await graph.ainvoke(asked)


@pytest.fixture
def desk(people, obedient):
    one = people()
    one.model = obedient
    return one


def asked_of(desk, make):
    return desk.asking(("look", {"what": "a"})) if make is agent else given()


@SYNC
@GRAPHS
async def test_a_guarded_call_in_a_cached_node_is_refused_and_on_record(desk, make, sync):
    graph = make(desk, NODES["guard_tools"](desk), ALWAYS)
    for _user in ("ann", "ben"):
        with pytest.raises(ConfigError, match="cache_policy") as refused:
            await ran(graph, asked_of(desk, make), sync=sync)
        assert refused.value.code == "node.cached"
    assert desk.paid == []
    assert [call.code for call in desk.log.calls()] == ["node.cached", "node.cached"]


@SYNC
@GRAPHS
async def test_without_a_policy_each_user_has_a_call_of_his_own(desk, make, sync):
    """The twin: a cache is there, and the node with the guarded tool is not cached."""
    graph = make(desk, NODES["guard_tools"](desk), None)
    for _user in ("ann", "ben"):
        state = await ran(graph, asked_of(desk, make), sync=sync)
        answers = [m.text for m in state["messages"] if m.type == "tool"]
        assert answers == ["looked at a"]
    assert len(desk.paid) == 2
    assert [call.decision for call in desk.log.calls()] == ["allow", "allow"]


def with_a_config_of_its_own(desk, policy, config):
    """A cached node by hand, which gives the guarded call a config."""
    (look,) = guard_tools([desk.look], desk.agent)

    def node(_state):
        return {"messages": [look.invoke(CALL, config)]}

    async def anode(_state):
        return {"messages": [await look.ainvoke(CALL, config)]}

    return plain(desk, RunnableLambda(node, anode), policy)


CONFIGS = pytest.mark.parametrize(
    "config",
    [{"configurable": {"thread_id": "mine"}}, {"configurable": {"user": "x"}}, {"tags": ["x"]}],
    ids=["thread", "user", "tags"],
)


@SYNC
@CONFIGS
async def test_a_config_of_the_calls_own_hides_no_cached_node(desk, config, sync):
    graph = with_a_config_of_its_own(desk, ALWAYS, config)
    for _user in ("ann", "ben"):
        with pytest.raises(ConfigError, match="cache_policy") as refused:
            await ran(graph, given(), sync=sync)
        assert refused.value.code == "node.cached"
    assert desk.paid == []
    assert [call.code for call in desk.log.calls()] == ["node.cached", "node.cached"]


@SYNC
@CONFIGS
async def test_a_config_of_the_calls_own_is_let_be_where_nothing_is_cached(desk, config, sync):
    """The twin."""
    graph = with_a_config_of_its_own(desk, None, config)
    for _user in ("ann", "ben"):
        state = await ran(graph, given(), sync=sync)
        assert state["messages"][-1].text == "looked at a"
    assert len(desk.paid) == 2


def in_a_graph_with_a_thread(desk, look):
    made = create_agent(desk.model, [desk.look], middleware=[GuardMiddleware(desk.agent)])
    thread = {"configurable": {"thread_id": "z"}}
    return made.invoke(desk.asking(("look", {"what": "a"})), thread)["messages"][-2]


def in_a_bare_thread(desk, look):
    with ThreadPoolExecutor() as pool:
        return pool.submit(look.invoke, CALL).result()


def in_a_thread_with_the_context(desk, look):
    with ThreadPoolExecutor() as pool:
        return pool.submit(copy_context().run, look.invoke, CALL).result()


def in_a_graph(desk, look):
    made = create_agent(desk.model, [desk.look], middleware=[GuardMiddleware(desk.agent)])
    return made.invoke(desk.asking(("look", {"what": "a"})))["messages"][-2]


@pytest.mark.parametrize("how", [in_a_graph_with_a_thread, in_a_bare_thread])
def test_the_limit_where_nothing_leads_to_the_cached_node_its_cache_is_not_seen(desk, how):
    (look,) = guard_tools([desk.look], desk.agent)
    graph = plain(desk, lambda _state: {"messages": [how(desk, look)]}, ALWAYS)
    told = [graph.invoke(given())["messages"][-1].text for _user in ("ann", "ben")]
    assert told == ["looked at a"] * 2
    assert (len(desk.paid), len(desk.log.calls())) == (1, 1)


@pytest.mark.parametrize("how", [in_a_graph, in_a_thread_with_the_context])
def test_where_the_context_goes_along_the_cached_node_is_seen(desk, how):
    """The twin: what to write instead."""
    (look,) = guard_tools([desk.look], desk.agent)
    graph = plain(desk, lambda _state: {"messages": [how(desk, look)]}, ALWAYS)
    with pytest.raises(ConfigError, match="cache_policy"):
        graph.invoke(given())
    assert desk.paid == []


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_no_result_comes_out_of_a_cache_whatever_runs_the_tool(desk, node):
    graph = plain(desk, node(desk), ALWAYS)
    for _user in ("ann", "ben"):
        try:
            state = graph.invoke(given())
        except ConfigError:
            continue
        assert not any("looked" in m.text for m in state["messages"])
    assert desk.paid == []


def test_a_policy_of_another_node_changes_nothing(desk):
    runs = []

    def embed(state):
        runs.append(1)
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("embed", embed, cache_policy=ALWAYS)
    builder.add_node("tools", NODES["guard_tools"](desk))
    builder.add_edge(START, "embed")
    builder.add_edge("embed", "tools")
    graph = builder.compile(cache=InMemoryCache())
    for _user in ("ann", "ben"):
        graph.invoke(given())
    assert (len(runs), len(desk.paid)) == (1, 2)


def test_a_policy_without_a_cache_keeps_nothing(desk):
    builder = StateGraph(MessagesState)
    builder.add_node("tools", NODES["guard_tools"](desk), cache_policy=ALWAYS)
    builder.add_edge(START, "tools")
    graph = builder.compile()
    graph.invoke(given())
    graph.invoke(given())
    assert len(desk.paid) == 2


def test_a_graph_is_told_to_be_cached(desk):
    node = NODES["guard_tools"](desk)
    assert [found.cached for found in find_tools(plain(desk, node, ALWAYS))] == ["tools"]
    assert [found.cached for found in find_tools(nested(desk, node, ALWAYS))] == ["within"]
    assert [found.cached for found in find_tools(nested(desk, node, None))] == [None]
