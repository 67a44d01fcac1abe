"""Streams of a sub-agent: the scope holds at each item, and ends with the stream."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
from delegation_team import ONLY_READS, READ, decision_rows
from graph_runs import SYNC, collect
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool

from agentguard import ConfigError
from agentguard_langchain import GuardedToolDenied, guard_subagent, guard_tools


def test_whoever_consumes_a_stream_keeps_what_he_has(team, child):
    (writing,) = guard_tools([team.write], child.orchestrator)
    with team.lend():
        for item in child.only_reading().stream(child.task, stream_mode="updates"):
            assert item
            writing.invoke({"path": "c"})
    assert {one for one in decision_rows(team) if one[2] != "alice>orchestrator"} == set(ONLY_READS)
    assert {one.scope for one in team.rows() if one.path == "alice>orchestrator"} == {
        "pr:write repo:read secret:read"
    }


async def test_whoever_consumes_an_async_stream_keeps_what_he_has(team, child):
    (writing,) = guard_tools([team.write], child.orchestrator)
    with team.lend():
        async for item in child.only_reading().astream(child.task, stream_mode="updates"):
            assert item
            await writing.ainvoke({"path": "c"})
    assert {one for one in decision_rows(team) if one[2] != "alice>orchestrator"} == set(ONLY_READS)


def test_a_stream_has_what_was_in_force_where_it_began(team, child):
    """Another thread, and another user, that ask for its items lend it nothing."""
    with team.lend("alice"):
        items = child.only_reading().stream(child.task, stream_mode="updates")
        with ThreadPoolExecutor(1) as pool:
            assert "content of a" in str(pool.submit(list, items).result())
        items = child.only_reading().stream(child.task, stream_mode="updates")
        with team.lend("mallory"):
            assert "content of a" in str(list(items))
    assert decision_rows(team) == sorted(2 * ONLY_READS)
    items = child.only_reading().stream(child.task, stream_mode="updates")
    with team.lend("mallory"):
        assert "[delegation.missing]" in str(list(items))


async def test_an_async_stream_that_other_tasks_consume(team, child):
    async with team.lend("alice"):
        items = child.only_reading().astream(child.task, stream_mode="updates")
        async with team.lend("mallory"):
            found = [await asyncio.create_task(anext(items)) for _ in range(2)]
            found += await asyncio.create_task(collect(items), context=contextvars.Context())
    assert "content of a" in str(found)
    assert decision_rows(team) == ONLY_READS


async def test_a_stream_under_a_delegation_is_begun_there(team, child):
    """One that began elsewhere would go on with what was in force there."""
    scoped = child.only_reading()
    options = {"stream_mode": "updates"}
    for begun in (scoped.stream(child.task, **options), scoped.astream(child.task, **options)):
        with pytest.raises(ConfigError, match="lambda") as refused:
            team.lend("alice").iterate(begun)
        assert refused.value.code == "delegation.generator"
    with team.lend("bob"):
        assert list(team.lend("alice").iterate(lambda: scoped.stream(child.task, **options)))
        astream = team.lend("alice").iterate(lambda: scoped.astream(child.task, **options))
        assert await collect(astream)
    allowed = [one.path for one in team.rows() if one.code == "allow"]
    assert allowed == ["alice>fixer"] * 2


def test_a_stream_that_outlives_its_block_has_ended(team, child):
    with team.lend():
        items = child.only_reading().stream(child.task, stream_mode="updates")
        next(items)
    assert "content of a" not in str(list(items))
    assert {one[:3] for one in decision_rows(team)} == {
        ("read", "delegation.ended", "alice"),
        ("write", "delegation.ended", "alice"),
    }


async def test_an_async_stream_that_outlives_the_call_it_began_in_has_ended(team, child):
    began = []

    @tool
    async def begin() -> str:
        """Begin."""
        began.append(child.only_reading().astream(child.task, stream_mode="updates"))
        return str(await anext(began[0]))

    with team.lend():
        await guard_tools([begin], child.orchestrator)[0].ainvoke({})
        assert "content of a" not in str(await collect(began[0]))
    assert {one[:2] for one in decision_rows(team)} == {
        ("begin", "allow"),
        ("read", "delegation.ended"),
        ("write", "delegation.ended"),
    }


def test_a_stream_that_is_abandoned_leaves_nothing(team, child):
    reading, writing = guard_tools([team.read, team.write], child.orchestrator)
    with team.lend():
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


async def test_an_async_stream_that_is_abandoned_leaves_nothing(team, child):
    (writing,) = guard_tools([team.write], child.orchestrator)
    async with team.lend():
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
    team, child, sync, closed
):
    streaming = Streaming(child.tools[0])
    scoped = guard_subagent(streaming, child.fixer, scope=READ)
    with team.lend():
        items = scoped.stream("x") if sync else scoped.astream("x")
        if not closed:
            assert len(list(items) if sync else await collect(items)) == 2
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
    assert [one[1:] for one in team.rows()[:-1]] == expected


async def test_time_outs_and_cancellations_reach_into_a_stream(team, child):
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

    graph = team.graph(guard_tools([hang], child.fixer))
    scoped = guard_subagent(graph, child.fixer, scope=READ)
    (reading,) = guard_tools([team.aread], child.orchestrator)

    async def run():
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await collect(scoped.astream(team.asking(("hang", {}))))

    async with team.lend():
        with pytest.raises(TimeoutError):
            await run()
        begun.clear()
        limits.clear()
        running = asyncio.create_task(collect(scoped.astream(team.asking(("hang", {})))))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await reading.ainvoke({"path": "a"}) == "content of a"
    assert stopped == ["cancelled"] * 2


async def test_a_task_that_outlives_its_sub_agent_has_nothing(team):
    """Not even what a function says: it ran as the sub-agent, and that has ended."""
    (fixer,) = team.agents("fixer")
    (reading,) = guard_tools([team.aread], fixer, delegation=lambda _: team.lend())
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
