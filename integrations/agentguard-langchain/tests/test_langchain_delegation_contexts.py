"""Under which delegation a guarded tool runs: the one in force in its context, thread or task.

A function that names the delegation has ``test_langchain_delegation_function.py``; runs that pause
have ``test_langchain_delegation_resumes.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from delegation_team import User, decision_codes
from graph_runs import SYNC, invoke, last_text
from langchain_core.tools import tool

from agentguard import ConfigError, Denied
from agentguard_langchain import GuardedToolDenied, guard_subagent, guard_tools

USERS = 100 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 20
"""At once through one graph."""


# --- in force in the context --------------------------------------------------------------------


@SYNC
async def test_a_call_is_made_for_whom_the_block_says(team, sync):
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([team.read, team.write], orchestrator))
    calls = team.asking(("read", {"path": "a"}), ("write", {"path": "b"}))
    with team.lend(scope=["repo:read"]):
        answer = last_text(await invoke(graph, calls, sync=sync))
    assert answer.startswith("content of a; Denied: write was not run. Reason: agent orchestrator")
    told = {one.tool: one[2:] for one in team.rows()}
    assert told == {
        "read": ("allow", "alice>orchestrator", "repo:read"),
        "write": ("scope.exceeded", "alice>orchestrator", "repo:read"),
    }
    assert [seen["delegation"]["scope"] for seen in team.seen] == [["repo:read"]]


@SYNC
async def test_without_one_a_delegated_agent_is_refused(team, sync, caplog):
    orchestrator, loner = team.agents("orchestrator", "loner")
    graph = team.graph(guard_tools([team.read], orchestrator))
    answer = last_text(await invoke(graph, team.asking(("read", {"path": "a"})), sync=sync))
    assert answer == (
        "Denied: read was not run. Reason: the application is not able to make this call "
        "[delegation.missing]. Do not retry: repeating the same call will not help."
    )
    line, remedy = (one.getMessage() for one in caplog.records if "agentguard" in one.name)
    assert line.startswith("denied code=delegation.missing agent=orchestrator ")
    assert "For the developer: make the call inside a block of guard.delegate(...)" in remedy
    graph = team.graph(guard_tools([team.read], loner))
    assert (
        last_text(await invoke(graph, team.asking(("read", {"path": "a"})), sync=sync))
        == "content of a"
    )
    paths = [(one.code, one.path) for one in team.rows()]
    assert paths == [("delegation.missing", "orchestrator"), ("allow", "loner")]


async def test_a_bare_tool_is_under_what_is_in_force(team):
    (orchestrator,) = team.agents("orchestrator")
    reading, areading = guard_tools([team.read, team.aread], orchestrator)
    with team.lend():
        assert reading.invoke({"path": "a"}) == "content of a"
        assert await areading.ainvoke({"path": "b"}) == "content of b"
        assert await reading.ainvoke({"path": "c"}) == "content of c"  # in an executor's thread
    with pytest.raises(GuardedToolDenied) as denied:
        reading.invoke({"path": "d"})
    assert denied.value.code == "delegation.missing"
    assert "guard.delegate(...)" in denied.value.reason  # the application is told the whole
    assert "guard.delegate(...)" not in str(denied.value)  # which LangChain may show a model
    assert {one.path for one in team.rows()[:3]} == {"alice>orchestrator"}


def test_an_agent_under_a_delegation_needs_no_block(team):
    (orchestrator,) = team.agents("orchestrator")
    (reading,) = guard_tools([team.read], orchestrator.under(team.lend("bob")))
    assert reading.invoke({"path": "a"}) == "content of a"
    with team.lend("alice"):
        assert reading.invoke({"path": "b"}) == "content of b"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(reading.invoke, {"path": "c"}).result() == "content of c"
    assert {one.path for one in team.rows()} == {"bob>orchestrator"}


# --- contexts -----------------------------------------------------------------------------------


async def test_tools_that_run_at_once_in_an_executor(team):
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([team.read, team.aread], orchestrator))
    calls = team.asking(*((name, {"path": str(n)}) for n in range(6) for name in ("read", "aread")))
    with team.lend():
        await graph.ainvoke(calls)
    assert {one[2:4] for one in team.rows()} == {("allow", "alice>orchestrator")}
    assert len(team.rows()) == 12


async def test_a_sync_tool_that_runs_async_work(team):
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    child = team.graph(guard_tools([team.aread], fixer))

    @tool
    def ask(task: str) -> str:
        """Ask the fixer."""
        return last_text(asyncio.run(child.ainvoke({"messages": [("user", task)]})))

    graph = team.graph(guard_tools([ask], orchestrator))
    task = team.task(("aread", {"path": "a"}))
    with team.lend():
        state = await graph.ainvoke(team.asking(("ask", {"task": task})))
    assert last_text(state) == "content of a"
    assert [one.path for one in team.rows()] == ["alice>orchestrator", "alice>orchestrator>fixer"]


def streaming(team):
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([team.read], orchestrator))
    return graph.stream(team.asking(("read", {"path": "a"})), stream_mode="updates")


def test_a_stream_that_is_consumed_after_its_block(team):
    with team.lend():
        inside = list(streaming(team))
        items = streaming(team)
        next(items)  # the model has spoken, and the tool is next
    left = list(items)
    assert "content of a" in str(inside)
    assert "[delegation.missing]" in str(left)
    assert decision_codes(team) == ["allow", "delegation.missing"]


def test_a_stream_that_is_consumed_elsewhere(team):
    """Each step runs in the context of whoever asks for it: a thread without one has nothing."""
    with team.lend("alice") as alice:
        items = streaming(team)
        next(items)
        with ThreadPoolExecutor(1) as pool:
            assert "[delegation.missing]" in str(pool.submit(list, items).result())
            items = streaming(team)
            assert "content of a" in str(pool.submit(alice.bind(lambda: list(items))).result())
        items = streaming(team)
        next(items)
        with team.lend("bob"):
            assert "content of a" in str(list(items))
    assert [one.path for one in team.rows()] == [
        "orchestrator",
        "alice>orchestrator",
        "bob>orchestrator",
    ]


@pytest.fixture
def response(team):
    """A streamed response for somebody, as an application writes it."""
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([team.aread, team.read], orchestrator))
    called = team.asking(("aread", {"path": "a"}))

    async def response(name):
        async for item in team.lend(name).iterate(graph.astream(called, stream_mode="updates")):
            yield item

    def blocked(name):
        async def blocked():
            async with team.lend(name):
                async for item in graph.astream(called, stream_mode="updates"):
                    yield item

        return blocked()

    response.blocked = blocked
    response.graph = graph
    return response


async def test_a_response_that_streams_with_a_block_in_it_is_refused(team, response):
    with pytest.raises(ConfigError, match="iterate") as caught:
        await anext(response.blocked("alice"))
    assert caught.value.code == "delegation.generator"
    assert team.rows() == []


async def test_a_response_that_streams_and_is_closed_elsewhere(team, response):
    (orchestrator,) = team.agents("orchestrator")
    whole = [item async for item in response("alice")]
    assert "content of a" in str(whole)
    abandoned = response("bob")
    await anext(abandoned)
    await asyncio.create_task(abandoned.aclose(), context=contextvars.Context())
    with pytest.raises(GuardedToolDenied) as denied:
        await guard_tools([team.aread], orchestrator)[0].ainvoke({"path": "b"})
    assert denied.value.code == "delegation.missing"
    assert [one.path for one in team.rows()] == ["alice>orchestrator", "orchestrator"]


async def test_a_response_is_its_users_whoever_asks_for_each_item(team, response):
    """LangGraph starts a task for each node: they are the response's user's, not the asker's."""

    async def ask(items):
        return await anext(items, None)

    with team.lend("bob"):
        for asking in (
            lambda items: asyncio.create_task(ask(items)),
            lambda items: asyncio.wait_for(ask(items), 120),
            ask,
        ):
            items, found = response("alice"), []
            while (item := await asking(items)) is not None:
                found.append(item)
            assert "content of a" in str(found)
    assert {one.path for one in team.rows()} == {"alice>orchestrator"}


def test_a_sync_stream_is_its_users_too(team):
    items = team.lend("alice").iterate(streaming(team))
    next(items)
    with team.lend("bob"):
        assert "content of a" in str(contextvars.copy_context().run(list, items))
    assert [one.path for one in team.rows()] == ["alice>orchestrator"]


async def test_a_task_that_outlives_its_call_has_nothing(team):
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    plain, asking_again = (
        guard_tools([team.aread], fixer, delegation=one)[0]
        for one in (None, lambda _: team.lend("mallory"))
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

    with team.lend():
        assert await guard_tools([begin], orchestrator)[0].ainvoke({}) == "content of in time"
        gone.set()
        for task in left:
            with pytest.raises(Denied) as denied:
                await task
            assert denied.value.code == "delegation.ended"
    assert sorted(decision_codes(team)) == [
        "allow",
        "allow",
        "delegation.ended",
        "delegation.ended",
    ]


@pytest.mark.parametrize("how", ["block", "function"])
async def test_many_users_at_once_through_one_graph(team, how):
    """Each reads and writes for himself, through two sub-agents; half of them may not write."""
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    users = [f"u{number}" for number in range(USERS)]
    scopes = {u: ["repo:read", "pr:write"][: 1 + n % 2] for n, u in enumerate(users)}
    lends = {user: team.lend(user, scopes[user]) for user in users}
    function = (lambda runtime: lends[runtime.context.name]) if how == "function" else None
    child = team.graph(guard_tools([team.aread, team.write], fixer, delegation=function))
    reader = guard_subagent(child, fixer, scope=["repo:read"])

    @tool
    async def ask(task: str) -> str:
        """Ask the fixer."""
        return last_text(await child.ainvoke({"messages": [("user", task)]}))

    @tool
    def ask_reader(task: str) -> str:
        """Ask the fixer, who is to read only."""
        return last_text(asyncio.run(reader.ainvoke({"messages": [("user", task)]})))

    tools = guard_tools([ask, ask_reader], orchestrator, delegation=function)
    graph = team.graph(tools, context_schema=User)

    async def serve(user):
        task = team.task(("aread", {"path": user}), ("write", {"path": user}))
        called = team.asking(("ask", {"task": task}), ("ask_reader", {"task": task}))
        if how == "function":
            return last_text(await graph.ainvoke(called, context=User(user)))
        async with lends[user]:
            return last_text(await graph.ainvoke(called))

    answers = await asyncio.gather(*map(serve, users))
    for user, answer in zip(users, answers, strict=True):
        assert answer.count(f"content of {user}") == 2
        assert answer.count(f"wrote {user}") == ("pr:write" in scopes[user])

    def whose(values):
        return values.get("path") or json.loads(values["task"])[0][1]["path"]

    for seen in team.seen:
        user = whose(seen["args"])
        assert seen["delegation"]["chain"][0] == seen["delegation"]["subject"] == f"user:{user}"
        assert set(seen["delegation"]["scope"]) <= set(scopes[user])
    calls = team.log.calls()
    assert len(calls) == 6 * USERS
    assert {call.predicate["principal"] == f"user:{whose(call.values)}" for call in calls} == {True}
    chains: dict[str, set[str]] = {}
    for call in calls:
        chains.setdefault(call.predicate["chain_sha256"], set()).add(call.predicate["principal"])
    # of each user one to the orchestrator and one to the fixer, and one with less where it is less
    assert len(chains) == 5 * USERS // 2
    assert {len(principals) for principals in chains.values()} == {1}
    assert [call.code for call in calls if call.code] == ["scope.exceeded"] * (3 * USERS // 2)
    assert team.row(calls[-1]).path.endswith(">orchestrator>fixer")


def test_threads_of_users_through_one_graph(team):
    (orchestrator,) = team.agents("orchestrator")
    graph = team.graph(guard_tools([team.read], orchestrator))
    together = threading.Barrier(8)

    def serve(user):
        together.wait()
        with team.lend(user):
            return last_text(graph.invoke(team.asking(("read", {"path": user}))))

    users = [f"u{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(serve, users)) == [f"content of {user}" for user in users]
    assert {(one.value, one.path) for one in team.rows()} == {
        (user, f"{user}>orchestrator") for user in users
    }
