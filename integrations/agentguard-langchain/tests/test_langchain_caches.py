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


def nested(inbox, node, policy):
    inner = StateGraph(MessagesState)
    inner.add_node("tools", node)
    inner.add_edge(START, "tools")
    outer = StateGraph(MessagesState)
    outer.add_node("within", inner.compile(), cache_policy=policy)
    outer.add_edge(START, "within")
    return outer.compile(cache=InMemoryCache())


def plain(inbox, node, policy):
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node, cache_policy=policy)
    builder.add_edge(START, "tools")
    return builder.compile(cache=InMemoryCache())


def by_default(inbox, node, policy):
    builder = StateGraph(MessagesState)
    builder.set_node_defaults(cache_policy=policy)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    return builder.compile(cache=InMemoryCache())


def agent(inbox, _node, policy):
    """An agent of create_agent as the cached node."""
    made = create_agent(inbox.model, [inbox.look], middleware=[GuardMiddleware(inbox.agent)])
    outer = StateGraph(MessagesState)
    outer.add_node("within", made, cache_policy=policy)
    outer.add_edge(START, "within")
    return outer.compile(cache=InMemoryCache())


def functional(inbox, _node, policy):
    (look,) = guard_tools([inbox.look], inbox.agent)

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


def flow(inbox, _node, policy):
    """The functional API's entrypoint is cached as a whole."""
    (look,) = guard_tools([inbox.look], inbox.agent)

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
    "guard_tools": lambda inbox: ToolNode(guard_tools([inbox.look], inbox.agent)),
    "guard_tool_node": lambda inbox: guard_tool_node([inbox.look], inbox.agent),
    "handles errors": lambda inbox: ToolNode(
        guard_tools([inbox.look], inbox.agent), handle_tool_errors=True
    ),
}


def given():
    return {"messages": [HumanMessage("[]", id="h"), AIMessage("", id="m", tool_calls=[CALL])]}


async def ran(graph, asked, *, sync):
    return graph.invoke(asked) if sync else await graph.ainvoke(asked)


@pytest.fixture
def inbox(people, obedient):
    one = people()
    one.model = obedient
    return one


def asked_of(inbox, make):
    return inbox.asking(("look", {"what": "a"})) if make is agent else given()


@SYNC
@GRAPHS
async def test_a_guarded_call_in_a_cached_node_is_refused_and_on_record(inbox, make, sync):
    graph = make(inbox, NODES["guard_tools"](inbox), ALWAYS)
    for _user in ("ann", "ben"):
        with pytest.raises(ConfigError, match="cache_policy") as refused:
            await ran(graph, asked_of(inbox, make), sync=sync)
        assert refused.value.code == "node.cached"
    assert inbox.paid == []
    assert [call.code for call in inbox.log.calls()] == ["node.cached", "node.cached"]


@SYNC
@GRAPHS
async def test_without_a_policy_each_user_has_a_call_of_his_own(inbox, make, sync):
    """The twin: a cache is there, and the node with the guarded tool is not cached."""
    graph = make(inbox, NODES["guard_tools"](inbox), None)
    for _user in ("ann", "ben"):
        state = await ran(graph, asked_of(inbox, make), sync=sync)
        answers = [m.text for m in state["messages"] if m.type == "tool"]
        assert answers == ["looked at a"]
    assert len(inbox.paid) == 2
    assert [call.decision for call in inbox.log.calls()] == ["allow", "allow"]


def with_a_config_of_its_own(inbox, policy, config):
    """A cached node by hand, which gives the guarded call a config."""
    (look,) = guard_tools([inbox.look], inbox.agent)

    def node(_state):
        return {"messages": [look.invoke(CALL, config)]}

    async def anode(_state):
        return {"messages": [await look.ainvoke(CALL, config)]}

    return plain(inbox, RunnableLambda(node, anode), policy)


CONFIGS = pytest.mark.parametrize(
    "config",
    [{"configurable": {"thread_id": "mine"}}, {"configurable": {"user": "x"}}, {"tags": ["x"]}],
    ids=["thread", "user", "tags"],
)


@SYNC
@CONFIGS
async def test_a_config_of_the_calls_own_hides_no_cached_node(inbox, config, sync):
    graph = with_a_config_of_its_own(inbox, ALWAYS, config)
    for _user in ("ann", "ben"):
        with pytest.raises(ConfigError, match="cache_policy") as refused:
            await ran(graph, given(), sync=sync)
        assert refused.value.code == "node.cached"
    assert inbox.paid == []
    assert [call.code for call in inbox.log.calls()] == ["node.cached", "node.cached"]


@SYNC
@CONFIGS
async def test_a_config_of_the_calls_own_is_let_be_where_nothing_is_cached(inbox, config, sync):
    """The twin."""
    graph = with_a_config_of_its_own(inbox, None, config)
    for _user in ("ann", "ben"):
        state = await ran(graph, given(), sync=sync)
        assert state["messages"][-1].text == "looked at a"
    assert len(inbox.paid) == 2


def in_a_graph_with_a_thread(inbox, look):
    made = create_agent(inbox.model, [inbox.look], middleware=[GuardMiddleware(inbox.agent)])
    thread = {"configurable": {"thread_id": "z"}}
    return made.invoke(inbox.asking(("look", {"what": "a"})), thread)["messages"][-2]


def in_a_bare_thread(inbox, look):
    with ThreadPoolExecutor() as pool:
        return pool.submit(look.invoke, CALL).result()


def in_a_thread_with_the_context(inbox, look):
    with ThreadPoolExecutor() as pool:
        return pool.submit(copy_context().run, look.invoke, CALL).result()


def in_a_graph(inbox, look):
    made = create_agent(inbox.model, [inbox.look], middleware=[GuardMiddleware(inbox.agent)])
    return made.invoke(inbox.asking(("look", {"what": "a"})))["messages"][-2]


@pytest.mark.parametrize("how", [in_a_graph_with_a_thread, in_a_bare_thread])
def test_the_limit_where_nothing_leads_to_the_cached_node_its_cache_is_not_seen(inbox, how):
    (look,) = guard_tools([inbox.look], inbox.agent)
    graph = plain(inbox, lambda _state: {"messages": [how(inbox, look)]}, ALWAYS)
    told = [graph.invoke(given())["messages"][-1].text for _user in ("ann", "ben")]
    assert told == ["looked at a"] * 2
    assert (len(inbox.paid), len(inbox.log.calls())) == (1, 1)


@pytest.mark.parametrize("how", [in_a_graph, in_a_thread_with_the_context])
def test_where_the_context_goes_along_the_cached_node_is_seen(inbox, how):
    """The twin: what to write instead."""
    (look,) = guard_tools([inbox.look], inbox.agent)
    graph = plain(inbox, lambda _state: {"messages": [how(inbox, look)]}, ALWAYS)
    with pytest.raises(ConfigError, match="cache_policy"):
        graph.invoke(given())
    assert inbox.paid == []


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_no_result_comes_out_of_a_cache_whatever_runs_the_tool(inbox, node):
    graph = plain(inbox, node(inbox), ALWAYS)
    for _user in ("ann", "ben"):
        try:
            state = graph.invoke(given())
        except ConfigError:
            continue
        assert not any("looked" in m.text for m in state["messages"])
    assert inbox.paid == []


def test_a_policy_of_another_node_changes_nothing(inbox):
    runs = []

    def embed(state):
        runs.append(1)
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("embed", embed, cache_policy=ALWAYS)
    builder.add_node("tools", NODES["guard_tools"](inbox))
    builder.add_edge(START, "embed")
    builder.add_edge("embed", "tools")
    graph = builder.compile(cache=InMemoryCache())
    for _user in ("ann", "ben"):
        graph.invoke(given())
    assert (len(runs), len(inbox.paid)) == (1, 2)


def test_a_policy_without_a_cache_keeps_nothing(inbox):
    builder = StateGraph(MessagesState)
    builder.add_node("tools", NODES["guard_tools"](inbox), cache_policy=ALWAYS)
    builder.add_edge(START, "tools")
    graph = builder.compile()
    graph.invoke(given())
    graph.invoke(given())
    assert len(inbox.paid) == 2


def test_a_graph_is_told_to_be_cached(inbox):
    node = NODES["guard_tools"](inbox)
    assert [found.cached for found in find_tools(plain(inbox, node, ALWAYS))] == ["tools"]
    assert [found.cached for found in find_tools(nested(inbox, node, ALWAYS))] == ["within"]
    assert [found.cached for found in find_tools(nested(inbox, node, None))] == [None]
