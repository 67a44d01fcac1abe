"""What comes between a call and its run: arguments that change while it waits, and interrupts.

A call that is cut short before it was decided is on record as refused, and what has cut it short
goes on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry


def allow(_call):
    return Decision.allow()


def on_record(guard):
    """The decision and code of each call, and the statuses of the outcomes."""
    parsed = [parse_entry(body) for _index, body in guard.reader().entries()]
    calls = [one for one in parsed if isinstance(one, CallEntry)]
    outcomes = [one.status for one in parsed if isinstance(one, OutcomeEntry)]
    assert guard.verify().problems == ()
    return [(call.decision, call.code) for call in calls], outcomes


@pytest.mark.parametrize("changed", [True, False])
async def test_arguments_that_change_while_a_sync_tool_waits_for_a_thread_do_not_run(changed):
    guard = Guard.ephemeral(allow)
    agent = guard.new_agent("a")
    ran = []

    @guard.tool
    def remove(files: list[str]) -> None:
        ran.append(list(files))

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    release = threading.Event()
    busy = loop.run_in_executor(None, release.wait, 10)
    files = ["ok"]
    call = asyncio.create_task(agent.acall(remove, files=files))
    while on_record(guard)[0] == []:  # noqa: ASYNC110  until it is decided, and waits for the thread
        await asyncio.sleep(0.01)
    if changed:
        files[:] = ["/etc/passwd"]
    release.set()
    await busy
    if changed:
        with pytest.raises(Denied) as caught:
            await call
        assert caught.value.code == "arguments.changed"
    else:
        await call
    assert ran == ([] if changed else [["ok"]])
    assert on_record(guard) == ([("allow", "")], ["not_run" if changed else "ok"])


INTERRUPTS = [SystemExit, KeyboardInterrupt, asyncio.CancelledError]


@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("where", ["policy", "facts"])
def test_what_is_interrupted_before_it_was_decided_is_refused_on_record(interrupt, where):
    ran: list[int] = []

    def interrupts(_values):
        raise interrupt

    guard = Guard.ephemeral(interrupts if where == "policy" else allow)
    agent = guard.new_agent("a")
    facts = interrupts if where == "facts" else None

    @guard.tool(facts=facts, gives=[])
    def note(number: int) -> None:
        ran.append(number)

    with pytest.raises(interrupt):
        agent.call(note, 1)
    assert ran == []
    assert on_record(guard) == ([("deny", "call.interrupted")], [])


def test_sys_exit_in_a_policy_leaves_the_program_with_its_code():
    guard = Guard.ephemeral(lambda _call: sys.exit(3))
    agent = guard.new_agent("a")
    note = guard.tool(name="note")(lambda x: x)
    with pytest.raises(SystemExit) as caught:
        agent.call(note, 1)
    assert caught.value.code == 3
    assert on_record(guard) == ([("deny", "call.interrupted")], [])


async def test_a_task_that_is_cancelled_while_facts_are_awaited_is_on_record():
    guard = Guard.ephemeral(allow)
    agent = guard.new_agent("a")
    begun = asyncio.Event()

    async def facts(_values):
        begun.set()
        await asyncio.Event().wait()

    note = guard.tool(name="note", facts=facts, gives=[])(lambda x: x)
    task = asyncio.create_task(agent.acall(note, 1))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert on_record(guard) == ([("deny", "call.interrupted")], [])


def test_facts_that_make_guarded_calls_of_their_own_leave_threads_for_those():
    """More at once than there are threads: each waits for what its own call writes."""
    guard = Guard.ephemeral(allow)
    agent = guard.new_agent("a")
    inner = guard.tool(name="inner")(lambda x: x)

    def facts(_values):
        return {"found": asyncio.run(agent.acall(inner, 1))}

    outer = guard.tool(name="outer", facts=facts, gives=["found"])(lambda x: x)

    async def many():
        return await asyncio.wait_for(
            asyncio.gather(*(agent.acall(outer, number) for number in range(40))), 60
        )

    assert asyncio.run(many()) == list(range(40))


async def test_slow_facts_do_not_hold_up_the_log():
    guard = Guard.ephemeral(allow)
    agent = guard.new_agent("a")
    release = threading.Event()

    def slow(_values):
        release.wait(60)
        return {}

    outer = guard.tool(name="outer", facts=slow, gives=[])(lambda x: x)
    quick = guard.tool(name="quick")(lambda x: x)
    waiting = [asyncio.create_task(agent.acall(outer, number)) for number in range(40)]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(agent.acall(quick, 1), 20) == 1
    assert not any(task.done() for task in waiting)
    release.set()
    assert sorted(await asyncio.gather(*waiting)) == list(range(40))


@pytest.mark.parametrize("result", [map(str, [1]), iter([1])], ids=["map", "iterator"])
def test_a_lazy_result_is_the_tools_affair(result):
    """It was computed by nobody yet: a tool whose effects lie in it does them when it is read."""
    guard = Guard.ephemeral(allow)
    lazy = guard.tool(name="lazy")(lambda: result)
    assert guard.new_agent("a").call(lazy) is result
