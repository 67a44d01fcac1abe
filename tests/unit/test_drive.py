"""The async driver: what an event loop does to a call, and that it is never left in doubt by it.

Each test runs through ``Agent.acall`` or ``arun`` on a real log; a gate in front of the log's
backend holds an append where a test wants it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
import time
from typing import Any

import pytest

from agentguard import (
    ApprovalPending,
    ConfigError,
    Decision,
    Denied,
    Ed25519Signer,
    Guard,
    Requirement,
    StorageError,
    adapters,
)
from agentguard.adapters import CallSite, Invocation
from agentguard.audit.kinds import parse_entry
from agentguard.call.arguments import Arguments
from agentguard.domain.verify import examine
from agentguard.signing.canonical import loads_object
from agentguard.signing.dsse import Envelope

WHO = contextvars.ContextVar("who", default="nobody")


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _: Decision.allow()) as opened:
        yield opened


@pytest.fixture
def agent(guard):
    return guard.new_agent("a")


@pytest.fixture
def ran():
    return []


class Gate:
    """A real engine behind a gate; ``error`` is what a commit raises once it is through."""

    def __init__(self, inner):
        self.inner = inner
        self.open = threading.Event()
        self.entered = threading.Event()
        self.error = None

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def write(self, work):
        self.entered.set()
        assert self.open.wait(60), "the test never opened the gate"
        if self.error is not None:
            raise self.error
        return self.inner.write(work)


def slow_log(guard):
    """Let the guard wait for its log, as for one on a disk; return the threads that wait."""
    executors = guard._parts.runtime.executors._replace(log_waits=True)
    guard._parts.runtime.executors = executors
    return executors.log


@pytest.fixture
def gate(guard, agent):
    slow_log(guard)
    store = guard._parts.runtime._ports.log._store
    store._engine = gate = Gate(store._engine)
    yield gate
    gate.error = None
    gate.open.set()


async def until(condition):
    """Let the loop run until ``condition``; fails after a while."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.001)


def records(guard, kind):
    entries = [parse_entry(body) for _index, body in guard.reader().entries()]
    return [entry.members for entry in entries if entry.kind == kind]


def statuses(guard):
    payloads = [
        Envelope.parse(m["statement"], may_be_joint=True).payload for m in records(guard, "outcome")
    ]
    predicates: list[Any] = [loads_object(payload)["predicate"] for payload in payloads]
    return [predicate["status"] for predicate in predicates]


def settled(guard):
    """The statuses of a log in which nothing is wrong and nothing is in doubt."""
    report = examine(guard.reader(), guard.trust)
    assert report.problems == ()
    assert report.in_doubt == ()
    return statuses(guard)


# --- tools of both kinds --------------------------------------------------------------------------


async def test_acall_runs_async_and_sync_tools(guard, agent):
    loop_thread = threading.get_ident()

    @guard.tool
    async def of_the_loop(x):
        await asyncio.sleep(0)
        return x, threading.get_ident()

    @guard.tool
    def of_a_thread(x):
        return x, threading.get_ident()

    assert await agent.acall(of_the_loop, 1) == (1, loop_thread)
    value, thread = await agent.acall(of_a_thread, x=2)
    assert value == 2
    assert thread != loop_thread
    assert settled(guard) == ["ok", "ok"]


async def test_acall_denies_as_call_does(ran):
    guard = Guard.ephemeral(lambda _: Decision.deny("no"))

    @guard.tool
    async def async_note():
        ran.append(1)

    @guard.tool
    def note():
        ran.append(1)

    agent = guard.new_agent("a")
    for tool in (async_note, note):
        with pytest.raises(Denied, match="no"):
            await agent.acall(tool)
    assert ran == []
    assert [r["decision"] for r in records(guard, "call")] == ["deny", "deny"]
    assert settled(guard) == []


def test_call_refuses_a_coroutine_function(guard, agent, ran):
    @guard.tool
    async def note():
        ran.append(1)

    with pytest.raises(ConfigError, match=r"await agent\.acall") as caught:
        agent.call(note)
    assert caught.value.code == "tool.async"
    assert ran == []


async def test_context_variables_reach_tools_and_facts(guard, agent):
    found = []

    async def async_facts(_arguments):
        found.append(WHO.get())
        return {}

    def facts(_arguments):
        found.append(WHO.get())
        return {}

    @guard.tool(facts=facts, gives=[])
    def plain():
        return WHO.get()

    @guard.tool(facts=async_facts, gives=[])
    async def coroutine():
        return WHO.get()

    WHO.set("alice")
    assert await agent.acall(plain) == "alice"
    assert await agent.acall(coroutine) == "alice"
    assert agent.call(plain) == "alice"
    assert found == ["alice"] * 3


class Source:
    """A look-up that is an object with an async ``__call__``."""

    async def __call__(self, _arguments):
        await asyncio.sleep(0)
        return {"x": 1}


async def async_look_up(_arguments):
    await asyncio.sleep(0)
    return {"x": 1}


@pytest.mark.parametrize(
    "facts",
    [async_look_up, functools.partial(async_look_up), Source(), lambda _arguments: {"x": 1}],
    ids=["function", "partial", "object", "sync"],
)
async def test_facts_of_every_kind_are_awaited(ran, facts):
    guard = Guard.ephemeral(lambda d: Decision.allow() if d.get("x") == 1 else Decision.deny("?"))

    @guard.tool(facts=facts, gives=["x"])
    async def note():
        ran.append(1)

    await guard.new_agent("a").acall(note)
    assert ran == [1]


@pytest.mark.parametrize(
    "facts",
    [async_look_up, functools.partial(async_look_up), Source(), lambda _arguments: {"x": 1}],
    ids=["function", "partial", "object", "sync"],
)
async def test_aevaluate_answers_as_acall_would_and_records_no_call(ran, facts):
    guard = Guard.ephemeral(lambda d: Decision.allow() if d["args"]["x"] == 1 else Decision.deny())
    agent, tool = guard.new_agent("a"), guard.tool(facts=facts, gives=["x"])(ran.append)
    site = CallSite("ahead")
    asked = [Invocation(tool.spec, Arguments.of({"x": x}), site) for x in (1, 2)]
    before = list(guard.reader().entries())
    assert (await adapters.aevaluate(agent, asked[0])).allowed
    assert (await adapters.aevaluate(agent, asked[1])).code == "policy.denied"
    if facts is async_look_up:
        assert adapters.evaluate(agent, asked[0]).code == "facts.failed"  # nobody awaits it there
    assert ran == []
    assert list(guard.reader().entries()) == before


async def test_an_async_look_up_that_raises_denies(guard, agent, ran):
    async def broken(_arguments):
        raise OSError("a secret")

    @guard.tool(facts=broken, gives=[])
    async def note():
        ran.append(1)

    with pytest.raises(Denied) as caught:
        await agent.acall(note)
    assert caught.value.code == "facts.failed"
    assert "a secret" not in str(caught.value)
    assert ran == []


# --- the loop is not blocked ---------------------------------------------------------------------


async def test_a_slow_on_request_does_not_block_the_loop_of_a_guard_in_memory(ran):
    """The loop writes to a log in memory itself, and calls nothing of the application there."""
    told, going = [], threading.Event()
    bob = Ed25519Signer.from_seed(bytes(32)).public_key.openssh()
    with Guard.ephemeral(
        lambda _: Decision.require_approval(Requirement("a refund needs a manager")),
        config={"approvers": {"bob": {"principal": "user:bob", "keys": [bob]}}},
        on_request=lambda request: told.append((request.request_id, going.wait(20))),
    ) as guard:

        @guard.tool
        async def note():
            ran.append(1)

        call = asyncio.ensure_future(guard.new_agent("a").acall(note))
        await asyncio.sleep(0.05)
        going.set()
        with pytest.raises(ApprovalPending) as pending:
            await call
    assert told == [(pending.value.request.request_id, True)]
    assert ran == []


async def test_a_slow_disk_does_not_block_the_loop(guard, agent, gate):
    @guard.tool
    async def note():
        return "done"

    call = asyncio.ensure_future(agent.acall(note))
    await until(gate.entered.is_set)
    for _ in range(20):
        await asyncio.sleep(0)  # the loop turns while the disk hangs
    assert not call.done()
    gate.open.set()
    assert await call == "done"
    assert settled(guard) == ["ok"]


async def test_sync_tools_that_fill_the_default_executor_do_not_starve_the_log(guard, agent):
    release = threading.Event()
    loop = asyncio.get_running_loop()
    blocked = [loop.run_in_executor(None, release.wait, 10) for _ in range(64)]
    try:

        @guard.tool
        async def note():
            return "done"

        assert await asyncio.wait_for(agent.acall(note), 5) == "done"
    finally:
        release.set()
        await asyncio.gather(*blocked)


# --- cancellation: before, while and after the append --------------------------------------------


async def test_cancelled_before_it_began_it_leaves_no_trace(guard, agent, ran):
    @guard.tool
    async def note():
        ran.append(1)

    call = asyncio.ensure_future(agent.acall(note))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ran == []
    assert records(guard, "call") == []


async def test_cancelled_while_facts_are_looked_up_it_never_runs(guard, agent, ran):
    begun = asyncio.Event()

    async def slow(_arguments):
        begun.set()
        await asyncio.sleep(60)

    @guard.tool(facts=slow, gives=[])
    async def note():
        ran.append(1)

    call = asyncio.ensure_future(agent.acall(note))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ran == []
    assert settled(guard) == []


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_during_the_append_it_is_recorded_as_not_run(
    guard, agent, gate, ran, times
):
    @guard.tool
    async def note():
        ran.append(1)

    call = asyncio.ensure_future(agent.acall(note))
    await until(gate.entered.is_set)
    for _ in range(times):
        call.cancel()
        await asyncio.sleep(0.01)
    assert not call.done()  # an append that has begun is finished first
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ran == []
    assert [r["decision"] for r in records(guard, "call")] == ["allow"]
    assert settled(guard) == ["not_run"]


async def test_cancelled_during_an_append_that_fails_nothing_is_in_doubt(guard, agent, gate, ran):
    complaints = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))

    @guard.tool
    async def note():
        ran.append(1)

    gate.error = StorageError("the disk is gone")
    call = asyncio.ensure_future(agent.acall(note))
    await until(gate.entered.is_set)
    call.cancel()
    await asyncio.sleep(0.01)
    gate.open.set()
    await asyncio.wait([call])
    assert call.cancelled() or isinstance(call.exception(), Denied)
    del call
    gate.error = None
    gc.collect()
    await asyncio.sleep(0)
    assert ran == []
    assert complaints == []  # such as an exception that nobody retrieved
    assert records(guard, "call") == []
    assert examine(guard.reader(), guard.trust).problems == ()


async def test_cancelled_while_the_tool_runs_the_outcome_is_unknown(guard, agent):
    begun = asyncio.Event()

    @guard.tool
    async def note():
        begun.set()
        await asyncio.sleep(60)

    call = asyncio.ensure_future(agent.acall(note))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert settled(guard) == ["unknown"]


async def test_a_sync_tool_whose_call_is_cancelled_is_unknown_and_its_thread_goes_on(guard, agent):
    begun, release, finished = threading.Event(), threading.Event(), threading.Event()

    @guard.tool
    def note():
        begun.set()
        release.wait(60)
        finished.set()

    call = asyncio.ensure_future(agent.acall(note))
    await until(begun.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    release.set()
    await until(finished.is_set)
    assert settled(guard) == ["unknown"]


async def test_a_timeout_is_an_unknown_outcome(guard, agent):
    deadline = asyncio.timeout(None)

    @guard.tool
    async def note():
        deadline.reschedule(asyncio.get_running_loop().time())  # not before it has begun
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        async with deadline:
            await agent.acall(note)
    assert settled(guard) == ["unknown"]


async def test_a_tool_that_swallows_its_cancellation_is_ok(guard, agent):
    begun = asyncio.Event()

    @guard.tool
    async def stubborn():
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "finished anyway"

    call = asyncio.ensure_future(agent.acall(stubborn))
    await begun.wait()
    call.cancel()
    assert await call == "finished anyway"
    assert settled(guard) == ["ok"]


# --- closed coroutines, the loop's end ------------------------------------------------------------


async def test_a_coroutine_closed_while_its_tool_waits_is_unknown(guard, agent, ran):
    @guard.tool
    async def note():
        ran.append("begun")
        await asyncio.Event().wait()
        ran.append("finished")

    call = agent.acall(note)
    while ran == []:  # driven by hand, to where the tool waits
        step = call.send(None)
        await (until(step.done) if ran == [] else asyncio.sleep(0))
    call.close()
    assert ran == ["begun"]
    assert settled(guard) == ["unknown"]


async def test_a_coroutine_closed_during_its_append_is_not_in_doubt(guard, agent, gate, ran):
    @guard.tool
    async def note():
        ran.append(1)

    call = agent.acall(note)
    call.send(None)
    await until(gate.entered.is_set)
    opener = threading.Timer(0.05, gate.open.set)
    opener.start()
    call.close()
    opener.join()
    assert ran == []
    assert settled(guard) in (["not_run"], [])


async def test_a_coroutine_closed_before_its_append_could_begin_is_not_in_doubt(guard, agent, ran):
    release = threading.Event()
    threads = slow_log(guard)
    blockers = [threads.submit(release.wait, 10) for _ in range(32)]

    @guard.tool
    async def note():
        ran.append(1)

    call = agent.acall(note)
    call.send(None)  # its append waits for a thread
    opener = threading.Timer(0.05, release.set)
    opener.start()
    call.close()
    opener.join()
    for blocker in blockers:
        blocker.result(10)
    await asyncio.sleep(0.05)
    assert ran == []
    assert settled(guard) in (["not_run"], [])


def test_a_coroutine_that_is_never_awaited_does_nothing(guard, agent, ran):
    @guard.tool
    async def note():
        ran.append(1)

    agent.acall(note).close()
    assert ran == []
    assert records(guard, "call") == []


def test_the_end_of_asyncio_run_leaves_nothing_in_doubt(guard, agent, ran):
    @guard.tool
    async def forever():
        ran.append("begun")
        await asyncio.Event().wait()

    async def main():
        tasks = [asyncio.ensure_future(agent.acall(forever)) for _ in range(5)]
        await until(lambda: len(ran) == 5)
        return tasks  # asyncio.run cancels them

    tasks = asyncio.run(main())
    assert all(task.cancelled() for task in tasks)
    assert settled(guard) == ["unknown"] * 5


def test_the_end_of_asyncio_run_waits_for_an_append(guard, agent, gate, ran):
    @guard.tool
    async def note():
        ran.append(1)

    async def main():
        call = asyncio.ensure_future(agent.acall(note))
        await until(gate.entered.is_set)
        asyncio.get_running_loop().call_later(0.05, gate.open.set)
        return call

    assert asyncio.run(main()).cancelled()
    assert ran == []
    assert settled(guard) == ["not_run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_an_async_tool_is_unknown_and_ends_the_loop(guard, agent, error):
    @guard.tool
    async def note():
        raise error

    with pytest.raises(error):
        asyncio.run(agent.acall(note))
    assert settled(guard) == ["unknown"]


async def test_many_calls_at_once(guard, agent):
    @guard.tool
    async def note(x):
        await asyncio.sleep(0)
        return x

    numbers = list(range(200))
    assert await asyncio.gather(*(agent.acall(note, x) for x in numbers)) == numbers
    assert settled(guard) == ["ok"] * 200


async def test_arun_takes_what_returns_a_value_or_an_awaitable(guard, agent):
    @guard.tool
    def spec():
        pass

    def call():
        return Invocation(
            spec.spec, Arguments.of({}), CallSite(adapters.next_call_id(agent, "spec"))
        )

    assert await adapters.arun(agent, call(), lambda: 1) == 1
    assert await adapters.arun(agent, call(), lambda: asyncio.sleep(0, 2)) == 2
    assert settled(guard) == ["ok", "ok"]
