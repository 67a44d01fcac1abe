"""``delegation=``: a function that names the delegation of each call of a guarded tool."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from delegation_team import User
from graph_runs import CONFIG, SYNC, invoke, last_text
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command, interrupt

from agentguard import AgentguardError, ConfigError
from agentguard_langchain import GuardedToolDenied, aevaluate, evaluate, guard_tools


class Lenders:
    """Lends to a graph that was built before anybody came, and keeps what it was given."""

    def __init__(self, team):
        self.team = team
        self.given: list[Any] = []
        self.kept: dict[str, Any] = {}

    def __call__(self, runtime):
        self.given.append(runtime)
        if runtime is None or runtime.context is None:
            return None
        name = runtime.context.name
        return self.kept.setdefault(name, self.team.lend(name))


@SYNC
async def test_a_graph_that_was_built_before_anybody_came(team, sync):
    lenders = Lenders(team)
    (orchestrator,) = team.agents("orchestrator")
    tools = guard_tools([team.read, team.aread], orchestrator, delegation=lenders)
    graph = team.graph(tools, context_schema=User)
    called = team.asking(("read" if sync else "aread", {"path": "a"}))
    for name in ("alice", "bob"):
        state = await invoke(graph, called, CONFIG, context=User(name), sync=sync)
        assert last_text(state) == "content of a"
    assert "[delegation.missing]" in last_text(await invoke(graph, called, sync=sync))
    assert [one.path for one in team.rows()] == [
        "alice>orchestrator",
        "bob>orchestrator",
        "orchestrator",
    ]
    runtime = lenders.given[0]
    assert (runtime.tool_call_id, runtime.context) == ("call0.0", User("alice"))
    assert runtime.config["configurable"]["thread_id"] == "t1"
    assert runtime.state is None


def test_a_tool_that_has_the_runtime_injected_shares_it(team):
    injected = []

    def look(x: int, runtime: ToolRuntime[User, Any]) -> str:
        """Look."""
        injected.append(runtime)
        return "looked"

    lenders = Lenders(team)
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([look], orchestrator, delegation=lenders), context_schema=User)
    assert (
        last_text(graph.invoke(team.asking(("look", {"x": 1})), context=User("alice"))) == "looked"
    )
    assert lenders.given == injected
    assert len(lenders.given[0].state["messages"]) == 2


def test_outside_a_graph_the_function_is_given_none(team):
    lenders = Lenders(team)
    (orchestrator,) = team.agents("orchestrator")
    (reading,) = guard_tools([team.read], orchestrator, delegation=lenders)
    with pytest.raises(GuardedToolDenied) as denied:
        reading.invoke({"path": "a"})
    assert denied.value.code == "delegation.missing"
    chain = RunnableLambda(reading.invoke)  # LangChain, and no graph
    with team.lend():  # where it says None, what is in force counts
        assert reading.invoke({"path": "b"}) == "content of b"
        assert chain.invoke({"path": "c"}) == "content of c"
    assert lenders.given == [None, None, None]
    assert [one.path for one in team.rows()] == ["orchestrator", *["alice>orchestrator"] * 2]


def test_the_function_comes_before_the_context(team):
    (orchestrator,) = team.agents("orchestrator")
    (reading,) = guard_tools([team.read], orchestrator, delegation=lambda _: bob)
    bob = team.lend("bob", ["repo:read"])
    with team.lend("alice"):
        assert reading.invoke({"path": "a"}) == "content of a"
    assert team.rows()[0][2:] == ("allow", "bob>orchestrator", "repo:read")


@SYNC
async def test_the_enclosing_call_comes_before_the_function(team, sync):
    """An agent that calls another as a tool hands on its own user, whatever that one's says."""
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    asked = []

    def mallory(runtime):
        asked.append(runtime)
        return team.lend("mallory")

    (reading,) = guard_tools([team.read], fixer, delegation=mallory)
    child = team.graph([reading])

    @tool
    def ask(task: str) -> str:
        """Ask the fixer."""
        return last_text(child.invoke({"messages": [("user", task)]}))

    graph = team.graph(guard_tools([ask], orchestrator))
    task = team.task(("read", {"path": "a"}))
    with team.lend("alice"):
        answer = last_text(await invoke(graph, team.asking(("ask", {"task": task})), sync=sync))
    assert answer == "content of a"
    assert asked == []
    assert [one.path for one in team.rows()] == ["alice>orchestrator", "alice>orchestrator>fixer"]
    assert reading.invoke({"path": "b"}) == "content of b"  # outside it is asked
    assert team.rows()[-1].path == "mallory>fixer"


def test_in_a_call_on_its_own_authority_the_function_is_asked(team):
    loner, fixer = team.agents("loner", "fixer")
    (reading,) = guard_tools([team.read], fixer, delegation=lambda _: team.lend("alice"))

    @tool
    def ask(path: str) -> str:
        """Ask the fixer."""
        return reading.invoke({"path": path})

    (asking,) = guard_tools([ask], loner)
    assert asking.invoke({"path": "a"}) == "content of a"
    assert [one.path for one in team.rows()] == ["loner", "alice>fixer"]


class SecretiveError(Exception):
    """Says what nobody should read."""


def raising(error):
    def lend(_runtime):
        raise error

    return lend


BAD = {
    "an exception": (raising(SecretiveError("hunter2")), "delegation.failed"),
    "one of ours": (raising(AgentguardError("it has expired", code="hop.expired")), "hop.expired"),
    "something else": (lambda _: "user:alice", "delegation.failed"),
    "a coroutine": (lambda _: asyncio.sleep(0), "delegation.failed"),
    "the wrong arguments": (lambda: None, "delegation.failed"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("agent", ["orchestrator", "loner"])
@SYNC
async def test_where_the_function_fails_nothing_wider_takes_its_place(team, name, agent, sync):
    function, code = BAD[name]
    (agent,) = team.agents(agent)
    bad, good = (
        guard_tools([team.read, team.aread], agent, delegation=one)[0 if sync else 1]
        for one in (function, lambda _: None)
    )
    with team.lend():
        with pytest.raises(GuardedToolDenied) as denied:
            await invoke(bad, {"path": "a"}, sync=sync)
        assert await invoke(good, {"path": "b"}, sync=sync) == "content of b"
    assert denied.value.code == code
    assert "hunter2" not in str(denied.value)
    (first, second) = team.rows()
    assert (first.code, second.code) == (code, "allow")
    assert [seen["args"]["path"] for seen in team.seen] == ["b"]


def test_a_function_may_pause_the_graph(team):
    (orchestrator,) = team.agents("orchestrator")
    alice = team.lend()

    def lend(_runtime):
        return {"alice": alice}[interrupt("who are you?")]

    graph = team.graph(
        guard_tools([team.read], orchestrator, delegation=lend), checkpointer=InMemorySaver()
    )
    paused = graph.invoke(team.asking(("read", {"path": "a"})), CONFIG)
    assert [one.value for one in paused["__interrupt__"]] == ["who are you?"]
    assert team.rows() == []
    assert last_text(graph.invoke(Command(resume="alice"), CONFIG)) == "content of a"
    assert team.rows()[0].path == "alice>orchestrator"


async def test_evaluate_asks_the_function_too(team):
    lenders = Lenders(team)
    (orchestrator,) = team.agents("orchestrator")
    (reading,) = guard_tools([team.read], orchestrator, delegation=lenders)
    assert evaluate(reading, {"path": "a"}).code == "delegation.missing"
    call = {"type": "tool_call", "id": "c1", "name": "read", "args": {"path": "a"}}
    with team.lend():
        assert evaluate(reading, call).allowed
        assert (await aevaluate(reading, call)).allowed
    (failing,) = guard_tools([team.read], orchestrator, delegation=raising(KeyError("x")))
    with team.lend():
        assert evaluate(failing, call).code == "delegation.failed"
    assert (await aevaluate(failing, call)).code == "delegation.failed"
    assert lenders.given == [None, None, None]


def test_a_function_that_is_none_is_refused_at_once(team):
    (orchestrator,) = team.agents("orchestrator")

    async def alend(_runtime):
        return None

    for wrong in (team.lend(), "user:alice", alend):
        with pytest.raises(ConfigError, match="function"):
            guard_tools([team.read], orchestrator, delegation=wrong)
    with pytest.raises(ConfigError, match="in vain"):
        guard_tools([team.read], orchestrator.under(team.lend()), delegation=lambda _: None)


def test_tools_keep_the_function_when_they_are_guarded_again(team):
    (orchestrator,) = team.agents("orchestrator")

    def lend(_runtime):
        return team.lend("alice")

    (reading,) = guard_tools([team.read], orchestrator, delegation=lend)
    assert guard_tools([reading], orchestrator) == [reading]
    assert guard_tools([reading], orchestrator, delegation=lend) == [reading]
    (raising_one,) = guard_tools([reading], orchestrator, on_deny="raise")
    assert raising_one.invoke({"path": "a"}) == "content of a"
    with pytest.raises(ConfigError, match="another delegation function"):
        guard_tools([reading], orchestrator, delegation=lambda _: None)
    with pytest.raises(ConfigError, match="under another delegation"):
        guard_tools([reading], orchestrator.under(team.lend()))
