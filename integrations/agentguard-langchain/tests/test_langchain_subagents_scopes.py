"""What a sub-agent may do under ``guard_subagent``: less than its parent, nested and in parallel.

Streams stand in ``test_langchain_subagents_streams.py``, and what can be wrapped in
``test_langchain_subagents_kinds.py``.
"""

from __future__ import annotations

import operator
from typing import Annotated

import pytest
from delegation_team import ONLY_READS, READ, decision_rows, tool_asking
from graph_runs import CONFIG, SYNC, invoke, last_text
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, Send, interrupt

from agentguard_langchain import GuardedToolDenied, guard_subagent, guard_tools

# --- less than its parent -----------------------------------------------------------------------


@SYNC
async def test_a_sub_agent_has_its_scope_and_its_parent_keeps_more(team, child, sync):
    parent = team.graph(
        guard_tools([tool_asking(child.only_reading()), team.write], child.orchestrator)
    )
    with team.lend():
        calls = team.asking(("ask", {"task": child.both}), ("write", {"path": "c"}))
        answer = last_text(await invoke(parent, calls, sync=sync))
    assert "content of a" in answer
    assert "wrote c" in answer
    assert "wrote b" not in answer
    whole = "pr:write repo:read secret:read"
    assert decision_rows(team) == [
        ("ask", "allow", "alice>orchestrator", whole),
        ("read", "allow", "alice>orchestrator>fixer", "repo:read"),
        ("write", "allow", "alice>orchestrator", whole),
        ("write", "scope.exceeded", "alice>orchestrator>fixer", "repo:read"),
    ]


@SYNC
async def test_a_sub_agents_call_names_the_call_that_handed_work_on(team, child, sync):
    parent = team.graph(guard_tools([tool_asking(child.graph), team.write], child.orchestrator))
    with team.lend():
        calls = team.asking(("ask", {"task": child.both}), ("write", {"path": "c"}))
        await invoke(parent, calls, sync=sync)
    logged = [call.predicate for call in team.log.calls()]
    (handed_on,) = [one["invocation_id"] for one in logged if one["tool"]["name"] == "ask"]
    inside = {one["agent"].split("/")[-2]: one["inside"] for one in logged}
    assert inside == {"orchestrator": None, "fixer": handed_on}


@SYNC
async def test_without_it_the_childs_configuration_is_all_that_bounds_it(team, child, sync):
    """The allowed twin: an agent as a plain tool has its chain as well."""
    parent = team.graph(guard_tools([tool_asking(child.graph)], child.orchestrator))
    with team.lend():
        answer = last_text(
            await invoke(parent, team.asking(("ask", {"task": child.both})), sync=sync)
        )
    assert answer == "content of a; wrote b"
    assert decision_rows(team)[1:] == [
        ("read", "allow", "alice>orchestrator>fixer", "pr:write repo:read"),
        ("write", "allow", "alice>orchestrator>fixer", "pr:write repo:read"),
    ]


@SYNC
async def test_more_than_there_is_is_refused_and_never_cut_down(team, child, sync, caplog):
    wide, narrow = child.only_reading(["pr:write", "repo:read"]), child.only_reading()
    with team.lend(scope=READ):
        refused = last_text(await invoke(wide, child.task, sync=sync))
        assert last_text(await invoke(narrow, child.task, sync=sync)).startswith(
            "content of a; Denied"
        )
    assert refused.count("[invalid_scope]") == 2
    assert "the sub-agent fixer is to have more than there is" in caplog.text
    assert decision_rows(team) == [
        ONLY_READS[0],
        ("read", "invalid_scope", "alice", ""),
        ("write", "invalid_scope", "alice", ""),
        ONLY_READS[1],
    ]


@SYNC
async def test_a_scope_that_the_childs_configuration_does_not_have_is_not_given(team, child, sync):
    grabbing = guard_subagent(
        team.graph(guard_tools([team.secret, team.read], child.fixer)),
        child.fixer,
        scope=["secret:read", "repo:read"],
    )
    calls = team.asking(("secret", {"name": "s"}), ("read", {"path": "a"}))
    with team.lend():
        await invoke(grabbing, calls, sync=sync)
    assert decision_rows(team) == [
        ONLY_READS[0],
        ("secret", "scope.exceeded", "alice>fixer", "repo:read"),
    ]


@SYNC
async def test_no_scope_is_none(team, child, sync):
    with team.lend():
        await invoke(child.only_reading([]), child.task, sync=sync)
        await invoke(child.only_reading(), child.task, sync=sync)
    assert {one[1:] for one in decision_rows(team) if one[3] == ""} == {
        ("scope.exceeded", "alice>fixer", "")
    }
    assert [one for one in decision_rows(team) if one[3]] == ONLY_READS


@SYNC
async def test_with_nothing_in_force_the_childs_configuration_decides(team, child, sync):
    (loner,) = team.agents("loner")
    own = guard_subagent(team.graph(guard_tools([team.read], loner)), loner, scope=READ)
    await invoke(child.only_reading(), child.task, sync=sync)
    assert (
        last_text(await invoke(own, team.asking(("read", {"path": "a"})), sync=sync))
        == "content of a"
    )
    assert decision_rows(team) == [
        ("read", "allow", "loner", ""),
        ("read", "delegation.missing", "fixer", ""),
        ("write", "delegation.missing", "fixer", ""),
    ]


@SYNC
@pytest.mark.parametrize("nested", [True, False])
async def test_the_function_of_a_hosted_graph_lends_no_more_than_the_scope(team, sync, nested):
    """Nothing is in force where the child begins: the function's delegation is narrowed there."""
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    tools = guard_tools([team.read, team.write], fixer, delegation=lambda _: team.lend())
    graph = team.graph(tools)
    scoped = guard_subagent(graph, fixer, scope=READ)
    if nested:
        scoped = guard_subagent(scoped, orchestrator, scope=["pr:write", "repo:read"])
    calls = team.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    await invoke(scoped, calls, sync=sync)
    assert decision_rows(team) == ONLY_READS
    assert last_text(await invoke(graph, calls, sync=sync)) == "content of a; wrote b"
    with team.lend("bob"):
        await invoke(scoped, calls, sync=sync)
    assert {one[2:4] for one in decision_rows(team)[-2:]} <= {
        ("alice>fixer", "pr:write repo:read"),
        ("alice>fixer", "repo:read"),
    }


def test_the_function_may_not_lend_less_than_the_scope(team):
    (fixer,) = team.agents("fixer")
    graph = team.graph(guard_tools([team.read], fixer, delegation=lambda _: team.lend(scope=READ)))
    wide = guard_subagent(graph, fixer, scope=["pr:write", "repo:read"])
    for one in (wide, guard_subagent(graph, fixer, scope=READ)):
        one.invoke(team.asking(("read", {"path": "a"})))
    assert [one.code for one in team.rows()] == ["invalid_scope", "allow"]


@SYNC
async def test_a_delegation_of_its_own(team, child, sync):
    bobs = guard_subagent(child.graph, child.fixer.under(team.lend("bob")), scope=READ)
    await invoke(bobs, child.task, sync=sync)
    with team.lend("alice"):
        await invoke(bobs, child.task, sync=sync)
    assert {one[1:] for one in decision_rows(team)} == {
        ("allow", "bob>fixer", "repo:read"),
        ("scope.exceeded", "bob>fixer", "repo:read"),
    }


def test_a_tool_under_a_delegation_of_its_own_has_no_more_than_the_scope(team):
    (fixer,) = team.agents("fixer")
    graph = team.graph(guard_tools([team.read, team.write], fixer.under(team.lend("bob"))))
    calls = team.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    guard_subagent(graph, fixer, scope=READ).invoke(calls)
    assert {one[1:] for one in decision_rows(team)} == {
        ("allow", "bob>fixer", "repo:read"),
        ("scope.exceeded", "bob>fixer", "repo:read"),
    }
    assert last_text(graph.invoke(calls)) == "content of a; wrote b"


# --- who acts -----------------------------------------------------------------------------------


@SYNC
async def test_another_agents_tools_are_refused_in_a_sub_agent(team, child, sync):
    wrong = team.graph(guard_tools([team.read], child.orchestrator))
    right = team.graph(guard_tools([team.read], child.fixer))
    calls = team.asking(("read", {"path": "a"}))
    with team.lend():
        for one in (wrong, right):
            await invoke(guard_subagent(one, child.fixer, scope=READ), calls, sync=sync)
    assert [(one.code, one.path) for one in team.rows()] == [
        ("agent.mismatch", "alice"),
        ("allow", "alice>fixer"),
    ]


@pytest.mark.parametrize("name", ["orchestrator", "loner"])
def test_what_a_guarded_call_of_the_sub_agent_runs_acts_for_itself(team, name):
    """As in a plain agent-as-a-tool, whether the agent has delegated authority or its own."""
    (agent, tester) = team.agents(name, "tester")
    (reading,) = guard_tools([team.read], tester, delegation=lambda _: team.lend())
    inner = team.graph([reading])
    scoped = guard_subagent(team.graph(guard_tools([tool_asking(inner)], agent)), agent, scope=READ)
    task = team.task(("read", {"path": "a"}))
    if name == "loner":
        scoped.invoke(team.asking(("ask", {"task": task})))
        paths = ["loner", "alice>tester"]
    else:
        with team.lend():
            scoped.invoke(team.asking(("ask", {"task": task})))
        paths = ["alice>orchestrator", "alice>orchestrator>tester"]
    assert [(one.code, one.path) for one in team.rows()] == [("allow", path) for path in paths]


# --- nested, parallel, handed off ---------------------------------------------------------------


@SYNC
async def test_sub_agents_of_sub_agents(team, child, sync):
    (tester,) = team.agents("tester")
    testing = team.graph(guard_tools([team.read, team.write], tester))
    wide = guard_subagent(testing, tester, scope=["pr:write", "repo:read"])
    narrow = guard_subagent(testing, tester, scope=READ)
    middle = [
        guard_subagent(
            team.graph(guard_tools([tool_asking(one)], child.fixer)), child.fixer, scope=READ
        )
        for one in (narrow, wide)
    ]
    with team.lend():
        for one in middle:
            parent = team.graph(guard_tools([tool_asking(one)], child.orchestrator))
            task = team.task(("ask", {"task": child.both}))
            await invoke(parent, team.asking(("ask", {"task": task})), sync=sync)
    whole = "pr:write repo:read secret:read"
    path = "alice>orchestrator>fixer"
    assert decision_rows(team) == sorted(
        [
            *2 * [("ask", "allow", "alice>orchestrator", whole), ("ask", "allow", path, READ[0])],
            ("read", "allow", f"{path}>tester", "repo:read"),
            ("write", "scope.exceeded", f"{path}>tester", "repo:read"),
            ("read", "invalid_scope", "alice", ""),
            ("write", "invalid_scope", "alice", ""),
        ]
    )


@SYNC
async def test_a_chain_goes_as_deep_as_it_may(team, child, sync):
    parent = team.graph(guard_tools([tool_asking(child.only_reading())], child.orchestrator))
    for depth in (2, 3):
        with team.lend(max_depth=depth):
            await invoke(parent, team.asking(("ask", {"task": child.reads})), sync=sync)
    assert [(one.tool, one.code) for one in team.rows()] == [
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
async def test_children_at_once_by_send_each_have_their_own_scope(team, child, sync):
    (tester,) = team.agents("tester")
    testing = team.graph(guard_tools([team.read, team.write], tester))
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
    with team.lend():
        await invoke(graph.compile(), {"messages": [], "tasks": []}, sync=sync)
    assert decision_rows(team) == sorted(
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
async def test_a_tool_node_runs_children_at_once(team, child, sync):
    reader, writer = (
        tool_asking(child.only_reading()),
        tool_asking(child.only_reading(["pr:write"])),
    )
    writer.name = "ask_writer"
    parent = team.graph(guard_tools([reader, writer], child.orchestrator))
    calls = [(name, {"task": child.both}) for _ in range(4) for name in ("ask", "ask_writer")]
    with team.lend():
        await invoke(parent, team.asking(*calls), sync=sync)
    rows = {one for one in decision_rows(team) if not one[0].startswith("ask")}
    path = "alice>orchestrator>fixer"
    assert rows == {
        ("read", "allow", path, "repo:read"),
        ("write", "scope.exceeded", path, "repo:read"),
        ("read", "scope.exceeded", path, "pr:write"),
        ("write", "allow", path, "pr:write"),
    }
    assert len(team.rows()) == 8 + 16


def handing_off(team, child, orchestrator_tools):
    """A child whose tool hands off to a node of its parent's graph."""

    @tool
    def hand_off(state: Annotated[dict, InjectedState]) -> Command:
        """Hand off."""
        return Command(goto="after", graph=Command.PARENT, update={"done": ["handed off"]})

    tools = guard_tools([hand_off, team.write], child.fixer)
    scoped = guard_subagent(team.graph(tools), child.fixer, scope=READ)

    def after(_state):
        return {"done": [one.invoke({"path": "p"}) for one in orchestrator_tools]}

    graph = StateGraph(Fan)
    graph.add_node("child", scoped, destinations=("after",))
    graph.add_node("after", after)
    graph.add_edge(START, "child")
    return graph.compile()


@SYNC
async def test_a_hand_off_ends_the_childs_scope(team, child, sync):
    tools = guard_tools([team.write], child.orchestrator)
    graph = handing_off(team, child, tools)
    calls = {**team.asking(("hand_off", {})), "tasks": []}
    with team.lend(scope=["pr:write", "repo:read"]):
        state = await invoke(graph, calls, sync=sync)
    assert state["done"] == ["handed off", "wrote p"]
    assert [one[2:] for one in team.rows()] == [
        ("allow", "alice>fixer", "repo:read"),
        ("allow", "alice>orchestrator", "pr:write repo:read"),
    ]


@SYNC
async def test_a_hand_off_gives_the_parent_no_more_than_it_had(team, child, sync):
    graph = handing_off(team, child, guard_tools([team.write], child.orchestrator))
    with team.lend(scope=READ), pytest.raises(GuardedToolDenied) as denied:
        await invoke(graph, {**team.asking(("hand_off", {})), "tasks": []}, sync=sync)
    assert denied.value.code == "scope.exceeded"
    with pytest.raises(GuardedToolDenied) as denied:  # and afterwards there is nothing
        child.tools[0].invoke({"path": "a"})
    assert denied.value.code == "delegation.missing"


@SYNC
async def test_after_an_interrupt_the_scope_is_in_force_again(team, child, sync):
    def ask(x: int) -> str:
        """Ask a person, and write."""
        return interrupt("go on?")

    tools = guard_tools([ask, team.read, team.write], child.fixer)
    inner = guard_subagent(team.graph(tools), child.fixer, scope=READ)
    graph = StateGraph(MessagesState)
    graph.add_node("child", inner)

    def again(_state):
        return team.asking(("read", {"path": "a"}), ("write", {"path": "b"}))

    graph.add_node("again", again)
    graph.add_node("child_again", inner)
    graph.add_edge(START, "child")
    graph.add_edge("child", "again")
    graph.add_edge("again", "child_again")
    compiled = graph.compile(checkpointer=InMemorySaver())
    with team.lend() as alice:
        paused = await invoke(compiled, team.asking(("ask", {"x": 1})), CONFIG, sync=sync)
        stored = alice.dumps()
    assert "__interrupt__" in paused
    with team.guard.resume(stored):
        await invoke(compiled, Command(resume="yes"), CONFIG, sync=sync)
    assert decision_rows(team) == [("ask", "allow", "alice>fixer", "repo:read")] * 2 + ONLY_READS
