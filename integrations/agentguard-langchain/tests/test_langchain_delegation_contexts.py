"""For whom a guarded tool's call is made: in force where it runs, said by a function, handed on."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command, interrupt

from agentguard import AgentguardError, ConfigError, Denied
from agentguard.domain import config, domain
from agentguard_langchain import GuardedToolDenied, aevaluate, evaluate, guard_subagent, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
USERS = 100 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 20
"""At once through one graph."""


@dataclass
class User:
    """A graph's run-time context: who asks, as the application has authenticated it."""

    name: str


async def ran(runnable, given, *options, sync, **more):
    if sync:
        return runnable.invoke(given, *options, **more)
    return await runnable.ainvoke(given, *options, **more)


def said(state):
    return state["messages"][-1].content


def code_of(raised):
    return raised.value.code


# --- in force in the context --------------------------------------------------------------------


@SYNC
async def test_a_call_is_made_for_whom_the_block_says(lent, sync):
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([lent.read, lent.write], orchestrator))
    calls = lent.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    with lent.lend(scope=["repo:read"]):
        answer = said(await ran(graph, calls, sync=sync))
    assert answer.startswith("content of a; Denied: write was not run. Reason: agent orchestrator")
    told = {one.tool: one[2:] for one in lent.story()}
    assert told == {
        "read": ("allow", "alice>orchestrator", "repo:read"),
        "write": ("scope.exceeded", "alice>orchestrator", "repo:read"),
    }
    assert [seen["delegation"]["scope"] for seen in lent.seen] == [["repo:read"]]


@SYNC
async def test_without_one_a_delegated_agent_is_refused(lent, sync):
    orchestrator, loner = lent.agents("orchestrator", "loner")
    graph = lent.graph(guard_tools([lent.read], orchestrator))
    answer = said(await ran(graph, lent.asking(("read", {"path": "a"})), sync=sync))
    assert "[delegation.missing]" in answer
    graph = lent.graph(guard_tools([lent.read], loner))
    assert said(await ran(graph, lent.asking(("read", {"path": "a"})), sync=sync)) == "content of a"
    paths = [(one.code, one.path) for one in lent.story()]
    assert paths == [("delegation.missing", "orchestrator"), ("allow", "loner")]


async def test_a_bare_tool_is_under_what_is_in_force(lent):
    (orchestrator,) = lent.agents("orchestrator")
    reading, areading = guard_tools([lent.read, lent.aread], orchestrator)
    with lent.lend():
        assert reading.invoke({"path": "a"}) == "content of a"
        assert await areading.ainvoke({"path": "b"}) == "content of b"
        assert await reading.ainvoke({"path": "c"}) == "content of c"  # in an executor's thread
    with pytest.raises(GuardedToolDenied) as denied:
        reading.invoke({"path": "d"})
    assert code_of(denied) == "delegation.missing"
    assert {one.path for one in lent.story()[:3]} == {"alice>orchestrator"}


def test_an_agent_under_a_delegation_needs_no_block(lent):
    (orchestrator,) = lent.agents("orchestrator")
    (reading,) = guard_tools([lent.read], orchestrator.under(lent.lend("bob")))
    assert reading.invoke({"path": "a"}) == "content of a"
    with lent.lend("alice"):
        assert reading.invoke({"path": "b"}) == "content of b"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(reading.invoke, {"path": "c"}).result() == "content of c"
    assert {one.path for one in lent.story()} == {"bob>orchestrator"}


# --- the function -------------------------------------------------------------------------------


class Lenders:
    """Lends to a graph that was built before anybody came, and keeps what it was given."""

    def __init__(self, lent):
        self.lent = lent
        self.given: list[Any] = []
        self.kept: dict[str, Any] = {}

    def __call__(self, runtime):
        self.given.append(runtime)
        if runtime is None or runtime.context is None:
            return None
        name = runtime.context.name
        return self.kept.setdefault(name, self.lent.lend(name))


@SYNC
async def test_a_graph_that_was_built_before_anybody_came(lent, sync):
    lenders = Lenders(lent)
    (orchestrator,) = lent.agents("orchestrator")
    tools = guard_tools([lent.read, lent.aread], orchestrator, delegation=lenders)
    graph = lent.graph(tools, context_schema=User)
    called = lent.asking(("read" if sync else "aread", {"path": "a"}))
    for name in ("alice", "bob"):
        state = await ran(graph, called, CONFIG, context=User(name), sync=sync)
        assert said(state) == "content of a"
    assert "[delegation.missing]" in said(await ran(graph, called, sync=sync))
    assert [one.path for one in lent.story()] == [
        "alice>orchestrator",
        "bob>orchestrator",
        "orchestrator",
    ]
    runtime = lenders.given[0]
    assert (runtime.tool_call_id, runtime.context) == ("call0.0", User("alice"))
    assert runtime.config["configurable"]["thread_id"] == "t1"
    assert runtime.state is None


def test_a_tool_that_has_the_runtime_injected_shares_it(lent):
    injected = []

    def look(x: int, runtime: ToolRuntime[User, Any]) -> str:
        """Look."""
        injected.append(runtime)
        return "looked"

    lenders = Lenders(lent)
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([look], orchestrator, delegation=lenders), context_schema=User)
    assert said(graph.invoke(lent.asking(("look", {"x": 1})), context=User("alice"))) == "looked"
    assert lenders.given == injected
    assert len(lenders.given[0].state["messages"]) == 2


def test_outside_a_graph_the_function_is_given_none(lent):
    lenders = Lenders(lent)
    (orchestrator,) = lent.agents("orchestrator")
    (reading,) = guard_tools([lent.read], orchestrator, delegation=lenders)
    with pytest.raises(GuardedToolDenied) as denied:
        reading.invoke({"path": "a"})
    assert code_of(denied) == "delegation.missing"
    chain = RunnableLambda(reading.invoke)  # LangChain, and no graph
    with lent.lend():  # where it says None, what is in force counts
        assert reading.invoke({"path": "b"}) == "content of b"
        assert chain.invoke({"path": "c"}) == "content of c"
    assert lenders.given == [None, None, None]
    assert [one.path for one in lent.story()] == ["orchestrator", *["alice>orchestrator"] * 2]


def test_the_function_comes_before_the_context(lent):
    (orchestrator,) = lent.agents("orchestrator")
    (reading,) = guard_tools([lent.read], orchestrator, delegation=lambda _: bob)
    bob = lent.lend("bob", ["repo:read"])
    with lent.lend("alice"):
        assert reading.invoke({"path": "a"}) == "content of a"
    assert lent.story()[0][2:] == ("allow", "bob>orchestrator", "repo:read")


@SYNC
async def test_the_enclosing_call_comes_before_the_function(lent, sync):
    """An agent that calls another as a tool hands on its own user, whatever that one's says."""
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    asked = []

    def mallory(runtime):
        asked.append(runtime)
        return lent.lend("mallory")

    (reading,) = guard_tools([lent.read], fixer, delegation=mallory)
    child = lent.graph([reading])

    @tool
    def ask(task: str) -> str:
        """Ask the fixer."""
        return said(child.invoke({"messages": [("user", task)]}))

    graph = lent.graph(guard_tools([ask], orchestrator))
    task = lent.task(("read", {"path": "a"}))
    with lent.lend("alice"):
        answer = said(await ran(graph, lent.asking(("ask", {"task": task})), sync=sync))
    assert answer == "content of a"
    assert asked == []
    assert [one.path for one in lent.story()] == ["alice>orchestrator", "alice>orchestrator>fixer"]
    assert reading.invoke({"path": "b"}) == "content of b"  # outside it is asked
    assert lent.story()[-1].path == "mallory>fixer"


def test_in_a_call_on_its_own_authority_the_function_is_asked(lent):
    loner, fixer = lent.agents("loner", "fixer")
    (reading,) = guard_tools([lent.read], fixer, delegation=lambda _: lent.lend("alice"))

    @tool
    def ask(path: str) -> str:
        """Ask the fixer."""
        return reading.invoke({"path": path})

    (asking,) = guard_tools([ask], loner)
    assert asking.invoke({"path": "a"}) == "content of a"
    assert [one.path for one in lent.story()] == ["loner", "alice>fixer"]


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
async def test_where_the_function_fails_nothing_wider_takes_its_place(lent, name, agent, sync):
    function, code = BAD[name]
    (agent,) = lent.agents(agent)
    bad, good = (
        guard_tools([lent.read, lent.aread], agent, delegation=one)[0 if sync else 1]
        for one in (function, lambda _: None)
    )
    with lent.lend():
        with pytest.raises(GuardedToolDenied) as denied:
            await ran(bad, {"path": "a"}, sync=sync)
        assert await ran(good, {"path": "b"}, sync=sync) == "content of b"
    assert code_of(denied) == code
    assert "hunter2" not in str(denied.value)
    (first, second) = lent.story()
    assert (first.code, second.code) == (code, "allow")
    assert [seen["args"]["path"] for seen in lent.seen] == ["b"]


def test_a_function_may_pause_the_graph(lent):
    (orchestrator,) = lent.agents("orchestrator")
    alice = lent.lend()

    def lend(_runtime):
        return {"alice": alice}[interrupt("who are you?")]

    graph = lent.graph(
        guard_tools([lent.read], orchestrator, delegation=lend), checkpointer=InMemorySaver()
    )
    paused = graph.invoke(lent.asking(("read", {"path": "a"})), CONFIG)
    assert [one.value for one in paused["__interrupt__"]] == ["who are you?"]
    assert lent.story() == []
    assert said(graph.invoke(Command(resume="alice"), CONFIG)) == "content of a"
    assert lent.story()[0].path == "alice>orchestrator"


async def test_evaluate_asks_the_function_too(lent):
    lenders = Lenders(lent)
    (orchestrator,) = lent.agents("orchestrator")
    (reading,) = guard_tools([lent.read], orchestrator, delegation=lenders)
    assert evaluate(reading, {"path": "a"}).code == "delegation.missing"
    call = {"type": "tool_call", "id": "c1", "name": "read", "args": {"path": "a"}}
    with lent.lend():
        assert evaluate(reading, call).allowed
        assert (await aevaluate(reading, call)).allowed
    (failing,) = guard_tools([lent.read], orchestrator, delegation=raising(KeyError("x")))
    with lent.lend():
        assert evaluate(failing, call).code == "delegation.failed"
    assert (await aevaluate(failing, call)).code == "delegation.failed"
    assert lenders.given == [None, None, None]


def test_a_function_that_is_none_is_refused_at_once(lent):
    (orchestrator,) = lent.agents("orchestrator")

    async def alend(_runtime):
        return None

    for wrong in (lent.lend(), "user:alice", alend):
        with pytest.raises(ConfigError, match="function"):
            guard_tools([lent.read], orchestrator, delegation=wrong)
    with pytest.raises(ConfigError, match="in vain"):
        guard_tools([lent.read], orchestrator.under(lent.lend()), delegation=lambda _: None)


def test_tools_keep_the_function_when_they_are_guarded_again(lent):
    (orchestrator,) = lent.agents("orchestrator")

    def lend(_runtime):
        return lent.lend("alice")

    (reading,) = guard_tools([lent.read], orchestrator, delegation=lend)
    assert guard_tools([reading], orchestrator) == [reading]
    assert guard_tools([reading], orchestrator, delegation=lend) == [reading]
    (raising_one,) = guard_tools([reading], orchestrator, on_deny="raise")
    assert raising_one.invoke({"path": "a"}) == "content of a"
    with pytest.raises(ConfigError, match="another delegation function"):
        guard_tools([reading], orchestrator, delegation=lambda _: None)
    with pytest.raises(ConfigError, match="under another delegation"):
        guard_tools([reading], orchestrator.under(lent.lend()))


# --- contexts -----------------------------------------------------------------------------------


async def test_tools_that_run_at_once_in_an_executor(lent):
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([lent.read, lent.aread], orchestrator))
    calls = lent.asking(*((name, {"path": str(n)}) for n in range(6) for name in ("read", "aread")))
    with lent.lend():
        await graph.ainvoke(calls)
    assert {one[2:4] for one in lent.story()} == {("allow", "alice>orchestrator")}
    assert len(lent.story()) == 12


async def test_a_sync_tool_that_runs_async_work(lent):
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    child = lent.graph(guard_tools([lent.aread], fixer))

    @tool
    def ask(task: str) -> str:
        """Ask the fixer."""
        return said(asyncio.run(child.ainvoke({"messages": [("user", task)]})))

    graph = lent.graph(guard_tools([ask], orchestrator))
    task = lent.task(("aread", {"path": "a"}))
    with lent.lend():
        state = await graph.ainvoke(lent.asking(("ask", {"task": task})))
    assert said(state) == "content of a"
    assert [one.path for one in lent.story()] == ["alice>orchestrator", "alice>orchestrator>fixer"]


def streaming(lent):
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([lent.read], orchestrator))
    return graph.stream(lent.asking(("read", {"path": "a"})), stream_mode="updates")


def codes(lent):
    return [one.code for one in lent.story()]


def test_a_stream_that_is_consumed_after_its_block(lent):
    with lent.lend():
        inside = list(streaming(lent))
        items = streaming(lent)
        next(items)  # the model has spoken, and the tool is next
    left = list(items)
    assert "content of a" in str(inside)
    assert "[delegation.missing]" in str(left)
    assert codes(lent) == ["allow", "delegation.missing"]


def test_a_stream_that_is_consumed_elsewhere(lent):
    """Each step runs in the context of whoever asks for it: a thread without one has nothing."""
    with lent.lend("alice") as alice:
        items = streaming(lent)
        next(items)
        with ThreadPoolExecutor(1) as pool:
            assert "[delegation.missing]" in str(pool.submit(list, items).result())
            items = streaming(lent)
            assert "content of a" in str(pool.submit(alice.bind(lambda: list(items))).result())
        items = streaming(lent)
        next(items)
        with lent.lend("bob"):
            assert "content of a" in str(list(items))
    assert [one.path for one in lent.story()] == [
        "orchestrator",
        "alice>orchestrator",
        "bob>orchestrator",
    ]


@pytest.fixture
def response(lent):
    """A streamed response for somebody, as an application writes it."""
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([lent.aread, lent.read], orchestrator))
    called = lent.asking(("aread", {"path": "a"}))

    async def response(name):
        async for item in lent.lend(name).iterate(graph.astream(called, stream_mode="updates")):
            yield item

    def blocked(name):
        async def blocked():
            async with lent.lend(name):
                async for item in graph.astream(called, stream_mode="updates"):
                    yield item

        return blocked()

    response.blocked = blocked
    response.graph = graph
    return response


async def test_a_response_that_streams_with_a_block_in_it_is_refused(lent, response):
    with pytest.raises(ConfigError, match="iterate") as caught:
        await anext(response.blocked("alice"))
    assert caught.value.code == "delegation.generator"
    assert lent.story() == []


async def test_a_response_that_streams_and_is_closed_elsewhere(lent, response):
    (orchestrator,) = lent.agents("orchestrator")
    whole = [item async for item in response("alice")]
    assert "content of a" in str(whole)
    abandoned = response("bob")
    await anext(abandoned)
    await asyncio.create_task(abandoned.aclose(), context=contextvars.Context())
    with pytest.raises(GuardedToolDenied) as denied:
        await guard_tools([lent.aread], orchestrator)[0].ainvoke({"path": "b"})
    assert code_of(denied) == "delegation.missing"
    assert [one.path for one in lent.story()] == ["alice>orchestrator", "orchestrator"]


async def test_a_response_is_its_users_whoever_asks_for_each_item(lent, response):
    """LangGraph starts a task for each node: they are the response's user's, not the asker's."""

    async def ask(items):
        return await anext(items, None)

    with lent.lend("bob"):
        for asking in (
            lambda items: asyncio.create_task(ask(items)),
            lambda items: asyncio.wait_for(ask(items), 120),
            ask,
        ):
            items, found = response("alice"), []
            while (item := await asking(items)) is not None:
                found.append(item)
            assert "content of a" in str(found)
    assert {one.path for one in lent.story()} == {"alice>orchestrator"}


def test_a_sync_stream_is_its_users_too(lent):
    items = lent.lend("alice").iterate(streaming(lent))
    next(items)
    with lent.lend("bob"):
        assert "content of a" in str(contextvars.copy_context().run(list, items))
    assert [one.path for one in lent.story()] == ["alice>orchestrator"]


async def test_a_task_that_outlives_its_call_has_nothing(lent):
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    plain, asking_again = (
        guard_tools([lent.aread], fixer, delegation=one)[0]
        for one in (None, lambda _: lent.lend("mallory"))
    )
    left, gone = [], asyncio.Event()

    async def later(reading):
        await gone.wait()
        return await reading.ainvoke({"path": "late"})

    @tool
    async def begin() -> str:
        """Begin."""
        left.extend(asyncio.create_task(later(one)) for one in (plain, asking_again))
        return await plain.ainvoke({"path": "in time"})

    with lent.lend():
        assert await guard_tools([begin], orchestrator)[0].ainvoke({}) == "content of in time"
        gone.set()
        for task in left:
            with pytest.raises(Denied) as denied:
                await task
            assert code_of(denied) == "delegation.ended"
    assert sorted(codes(lent)) == ["allow", "allow", "delegation.ended", "delegation.ended"]


@pytest.mark.parametrize("how", ["block", "function"])
async def test_many_users_at_once_through_one_graph(lent, how):
    """Each reads and writes for himself, through two sub-agents; half of them may not write."""
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    users = [f"u{number}" for number in range(USERS)]
    scopes = {u: ["repo:read", "pr:write"][: 1 + n % 2] for n, u in enumerate(users)}
    lends = {user: lent.lend(user, scopes[user]) for user in users}
    function = (lambda runtime: lends[runtime.context.name]) if how == "function" else None
    child = lent.graph(guard_tools([lent.aread, lent.write], fixer, delegation=function))
    reader = guard_subagent(child, fixer, scope=["repo:read"])

    @tool
    async def ask(task: str) -> str:
        """Ask the fixer."""
        return said(await child.ainvoke({"messages": [("user", task)]}))

    @tool
    def ask_reader(task: str) -> str:
        """Ask the fixer, who is to read only."""
        return said(asyncio.run(reader.ainvoke({"messages": [("user", task)]})))

    tools = guard_tools([ask, ask_reader], orchestrator, delegation=function)
    graph = lent.graph(tools, context_schema=User)

    async def serve(user):
        task = lent.task(("aread", {"path": user}), ("write", {"path": user}))
        called = lent.asking(("ask", {"task": task}), ("ask_reader", {"task": task}))
        if how == "function":
            return said(await graph.ainvoke(called, context=User(user)))
        async with lends[user]:
            return said(await graph.ainvoke(called))

    answers = await asyncio.gather(*map(serve, users))
    for user, answer in zip(users, answers, strict=True):
        assert answer.count(f"content of {user}") == 2
        assert answer.count(f"wrote {user}") == ("pr:write" in scopes[user])

    def whose(values):
        return values.get("path") or json.loads(values["task"])[0][1]["path"]

    for seen in lent.seen:
        user = whose(seen["args"])
        assert seen["delegation"]["chain"][0] == seen["delegation"]["subject"] == f"user:{user}"
        assert set(seen["delegation"]["scope"]) <= set(scopes[user])
    calls = lent.log.calls()
    assert len(calls) == 6 * USERS
    assert {call.predicate["principal"] == f"user:{whose(call.values)}" for call in calls} == {True}
    chains: dict[str, set[str]] = {}
    for call in calls:
        chains.setdefault(call.predicate["chain_sha256"], set()).add(call.predicate["principal"])
    # of each user one to the orchestrator and one to the fixer, and one with less where it is less
    assert len(chains) == 5 * USERS // 2
    assert {len(principals) for principals in chains.values()} == {1}
    assert [call.code for call in calls if call.code] == ["scope.exceeded"] * (3 * USERS // 2)
    assert lent.told(calls[-1]).path.endswith(">orchestrator>fixer")


def test_threads_of_users_through_one_graph(lent):
    (orchestrator,) = lent.agents("orchestrator")
    graph = lent.graph(guard_tools([lent.read], orchestrator))
    together = threading.Barrier(8)

    def serve(user):
        together.wait()
        with lent.lend(user):
            return said(graph.invoke(lent.asking(("read", {"path": user}))))

    users = [f"u{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(serve, users)) == [f"content of {user}" for user in users]
    assert {(one.value, one.path) for one in lent.story()} == {
        (user, f"{user}>orchestrator") for user in users
    }


# --- after an interrupt -------------------------------------------------------------------------


@SYNC
async def test_a_stored_delegation_is_in_force_again_on_resume(lent, sync):
    orchestrator, fixer = lent.agents("orchestrator", "fixer")
    (reading,) = guard_tools([lent.read], fixer)

    @tool
    def ask(path: str) -> str:
        """Ask a person, and then the fixer."""
        return f"{interrupt('go on?')}: {reading.invoke({'path': path})}"

    tools = guard_tools([ask], orchestrator)
    graph = lent.graph(tools, checkpointer=InMemorySaver())
    with lent.lend(task_id="task_1") as alice:
        paused = await ran(graph, lent.asking(("ask", {"path": "a"})), CONFIG, sync=sync)
        stored = alice.dumps()
    assert "__interrupt__" in paused
    with lent.guard.resume(stored):
        state = await ran(graph, Command(resume="yes"), CONFIG, sync=sync)
    assert said(state) == "yes: content of a"
    story = lent.story()
    assert [(one.tool, one.path) for one in story] == [
        ("ask", "alice>orchestrator"),
        ("ask", "alice>orchestrator"),
        ("read", "alice>orchestrator>fixer"),
    ]
    outcomes = [call.outcome for call in lent.log.calls()]
    assert outcomes == ["unknown", "ok", "ok"]
    assert {call.predicate["task_id"] for call in lent.log.calls()} == {"task_1"}


def test_without_it_the_resumed_run_is_refused(lent):
    (orchestrator,) = lent.agents("orchestrator")

    @tool
    def ask(path: str) -> str:
        """Ask a person."""
        return interrupt("go on?")

    graph = lent.graph(guard_tools([ask], orchestrator), checkpointer=InMemorySaver())
    with lent.lend():
        graph.invoke(lent.asking(("ask", {"path": "a"})), CONFIG)
    state = graph.invoke(Command(resume="yes"), CONFIG)
    assert "[delegation.missing]" in said(state)
    assert codes(lent) == ["allow", "delegation.missing"]


SERVICE = '''
import json, sys
from pathlib import Path
from agentguard import Decision, Guard
from agentguard_langchain import guard_subagent, guard_tools
from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, interrupt
from obedient import Obedient


def decide(document):
    return Decision.allow()


def read(x: str) -> str:
    """Read, once a person has agreed."""
    return f"{interrupt('go on?')}: read {x}"


def main(step, thread):
    with Guard.open(passphrase=b"of this test") as guard, \\
            SqliteSaver.from_conn_string("threads.db") as saver:
        orchestrator, fixer = guard.new_agent("orchestrator"), guard.new_agent("fixer")
        child = create_agent(Obedient(), guard_tools([read], fixer))
        child = guard_subagent(child, fixer, scope=["repo:read"])

        def ask(x: str) -> str:
            """Ask the fixer."""
            return child.invoke({"messages": [("user", x)]})["messages"][-1].text

        tools = guard_tools([ask], orchestrator)
        graph = create_agent(Obedient(), tools, checkpointer=saver)
        config = {"configurable": {"thread_id": thread}}
        work = json.dumps([["ask", {"x": json.dumps([["read", {"x": "a"}]])}]])
        if step == "begin":
            scope = ["repo:read", "pr:write"]
            with guard.delegate("user:alice", scope=scope, task_id="task_1") as alice:
                graph.invoke({"messages": [("user", work)]}, config)
                graph.invoke({"messages": [("user", work)]}, {"configurable": {"thread_id": "t2"}})
            Path("stored").write_bytes(alice.dumps())
        elif step == "with":
            with guard.resume(Path("stored").read_bytes()):
                print(graph.invoke(Command(resume="yes"), config)["messages"][-1].text)
        else:
            print(graph.invoke(Command(resume="yes"), config)["messages"][-1].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "service:decide"

[agents.orchestrator]
max_scope = ["repo:read", "pr:write"]

[agents.fixer]
max_scope = ["repo:read", "pr:write"]

[tools.read]
requires = ["repo:read"]
"""


@pytest.fixture
def service(tmp_path, preloaded):
    """A durable service, each step of which runs in a process of its own."""
    (tmp_path / "service.py").write_text(SERVICE, "utf-8")
    (tmp_path / "agentguard.toml").write_text(textwrap.dedent(TABLES), "utf-8")
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))

    def step(*arguments: str) -> str:
        done = preloaded.run("service.py", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return step


def test_another_process_goes_on_with_what_was_stored_and_not_without(service):
    assert service("begin", "t1") == ""
    assert "[delegation.missing]" in service("without", "t2")
    assert service("with", "t1") == "yes: read a"
