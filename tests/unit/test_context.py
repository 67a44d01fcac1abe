"""The idempotency key: the invocation's id within the call, wherever the tool runs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import langchain_core.tools
import pytest

from agentguard import Decision, Denied, Guard, UnguardedCallError, adapters, idempotency_key
from agentguard.adapters import CallSite, Invocation
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.call.arguments import Arguments
from agentguard_langchain import guard_tools


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _: Decision.allow()) as opened:
        yield opened


@pytest.fixture
def agent(guard):
    return guard.new_agent("a")


@pytest.fixture
def tool(guard):
    @guard.tool
    def tool():
        return idempotency_key()

    return tool


@pytest.fixture
def atool(guard):
    @guard.tool
    async def atool():
        before = idempotency_key()
        await asyncio.sleep(0)
        assert idempotency_key() == before
        return before

    return atool


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    outside()


def outside():
    with pytest.raises(UnguardedCallError, match=r"agent\.call") as caught:
        idempotency_key()
    assert caught.value.code == "tool.unguarded"


def logged(guard):
    """The ids of the calls in the log, in their order."""
    parsed = [parse_entry(body) for _index, body in guard.reader().entries()]
    calls = [one for one in parsed if isinstance(one, CallEntry)]
    return [call.invocation_id for call in calls]


def test_outside_of_a_call_there_is_none():
    outside()


def test_within_a_call_it_is_the_invocations_id(guard, agent, tool):
    keys = [agent.call(tool), agent.call(tool)]
    assert keys == logged(guard)
    assert keys[0] != keys[1]
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


async def test_within_an_async_call(guard, agent, atool):
    keys = [await agent.acall(atool), await agent.acall(atool)]
    assert keys == logged(guard)
    outside()


async def test_a_sync_tool_in_a_worker_thread(guard, agent, tool):
    assert [await agent.acall(tool)] == logged(guard)
    outside()


async def test_calls_at_the_same_time_have_their_own(guard, agent, atool, tool):
    keys = await asyncio.gather(*(agent.acall(one) for one in (atool, tool) * 8))
    assert sorted(keys) == sorted(logged(guard))
    assert len(set(keys)) == 16


def test_in_threads_each_call_has_its_own(guard, agent, tool):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: agent.call(tool), range(16)))
    assert sorted(keys) == sorted(logged(guard))


async def test_what_a_tool_hands_to_a_thread(guard, agent):
    """``to_thread`` takes the context along; a bare thread does not, and there it raises."""
    bare = []

    def ask():
        try:
            bare.append(idempotency_key())
        except UnguardedCallError as error:
            bare.append(error.code)

    @guard.tool
    async def tool():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
        thread.start()
        thread.join()
        return await asyncio.to_thread(idempotency_key)

    key = await agent.acall(tool)
    assert [key] == logged(guard)
    assert bare == ["tool.unguarded", key]


def test_a_nested_call_has_its_own_and_the_outer_one_comes_back(guard, agent, tool):
    @guard.tool
    def outer():
        return idempotency_key(), agent.call(tool), idempotency_key()

    first, inner, last = agent.call(outer)
    assert first == last != inner
    assert [first, inner] == logged(guard)


async def test_a_nested_async_call_too(guard, agent, atool):
    @guard.tool
    async def outer():
        return idempotency_key(), await agent.acall(atool), idempotency_key()

    first, inner, last = await agent.acall(outer)
    assert first == last != inner
    assert [first, inner] == logged(guard)


def test_after_an_exception_and_after_an_interrupt_it_is_gone(guard, agent):
    @guard.tool
    def fail(error):
        assert idempotency_key()
        raise {"error": ValueError, "interrupt": KeyboardInterrupt, "exit": SystemExit}[error]

    for name, kind in (
        ("error", ValueError),
        ("interrupt", KeyboardInterrupt),
        ("exit", SystemExit),
    ):
        with pytest.raises(kind):
            agent.call(fail, name)
        outside()
    assert len(logged(guard)) == 3


def test_a_denied_call_has_none(agent):
    asked = []

    def look_up(_arguments):
        outside()
        asked.append("facts")
        return {}

    def decide(_document):
        outside()
        asked.append("policy")
        return Decision.deny("no")

    with Guard.ephemeral(decide) as denying:
        tool = denying.tool(facts=look_up, gives=[])(asked.append)
        with pytest.raises(Denied):
            denying.new_agent("a").call(tool, "ran")
    assert asked == ["facts", "policy"]


async def test_a_cancelled_call_leaves_none(guard, agent):
    seen, begun = [], asyncio.Event()

    @guard.tool
    async def forever():
        seen.append(idempotency_key())
        begun.set()
        await asyncio.sleep(3600)

    call = asyncio.create_task(agent.acall(forever))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    outside()
    assert seen == logged(guard)


def test_a_coroutine_that_is_closed_in_another_context(guard, agent):
    """As a garbage collector does it: the tool's own context can't be put back, and no one sees."""
    seen, begun = [], asyncio.Event()

    @guard.tool
    async def stops():
        seen.append(idempotency_key())
        begun.set()
        await asyncio.sleep(3600)

    async def begin():
        call = agent.acall(stops)

        async def drive():
            await call

        task = asyncio.create_task(drive())
        await begun.wait()
        return call, task

    loop = asyncio.new_event_loop()
    try:
        _call, task = loop.run_until_complete(begin())
        coroutine = task.get_coro()
        contextvars.copy_context().run(coroutine.close)  # not the one in which it ran
        outside()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, RuntimeError)):
            loop.run_until_complete(task)
    finally:
        loop.close()
    gc.collect()
    outside()
    guard.reader()
    assert seen == logged(guard)


def test_for_adapters_run_has_it_too(guard, agent):
    invocation = Invocation.bind(
        guard.tool(lambda: None).spec, lambda: Arguments.of({}), CallSite("call-1")
    )
    assert [adapters.run(agent, invocation, idempotency_key)] == logged(guard)
    assert adapters.evaluate(agent, invocation).allowed


def test_a_langchain_tool_has_it(guard, agent):
    def pay(cents: int) -> str:
        """Pay."""
        return f"{cents}:{idempotency_key()}"

    async def apay(cents: int) -> str:
        """Pay, async."""
        return f"{cents}:{idempotency_key()}"

    sync, coroutine = guard_tools(
        [langchain_core.tools.tool(pay), langchain_core.tools.tool(apay)], agent
    )
    results = [
        sync.invoke({"cents": 1}),
        asyncio.run(sync.ainvoke({"cents": 2})),
        asyncio.run(coroutine.ainvoke({"cents": 3})),
    ]
    assert results == [f"{n}:{key}" for n, key in enumerate(logged(guard), 1)]
