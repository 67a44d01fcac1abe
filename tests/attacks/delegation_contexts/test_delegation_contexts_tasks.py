"""A delegation in threads, tasks and context managers: never a wider authority, never another's.

Two agents see to that. ``worker`` acts only under a delegation: where a context is lost, ``worker``
is denied. ``robot`` may act by itself: where a context is lost, ``robot`` has more authority than
was delegated, and where one leaks, somebody else's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import Context, copy_context
from typing import Any

import pytest
from delegated_agents import AGENTS, FOR_WHOM, MAX_SCOPE

from agentguard import Decision, Denied, Guard


@pytest.fixture
def whoami(guard):
    """Says for whom a call with it is made, by the policy's input to it: None for nobody."""
    return guard.tool(name="whoami", requires=["read"])(lambda: FOR_WHOM.get())  # noqa: PLW0108


@pytest.fixture
def acts(robot, worker, whoami) -> Callable[[], tuple[Any, Any]]:
    """For whom the robot acts here, and the worker; the code where they are denied."""

    def attempt(agent):
        try:
            return agent.call(whoami)
        except Denied as denied:
            return denied.code

    return lambda: (attempt(robot), attempt(worker))


@pytest.fixture
def alice(guard):
    return guard.delegate("user:alice", scope=["read"])


@pytest.fixture
def bob(guard):
    return guard.delegate("user:bob", scope=["read"])


ALICE = ("user:alice", "user:alice")
BOB = ("user:bob", "user:bob")
NOBODY = (None, "delegation.missing")
ENDED = ("delegation.ended", "delegation.ended")


def test_the_twins(acts, alice, bob):
    assert acts() == NOBODY
    with alice:
        assert acts() == ALICE
        with bob:
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


# --- threads --------------------------------------------------------------------------------------


def test_a_thread_takes_no_context_along_and_a_bound_function_does(acts, alice):
    with ThreadPoolExecutor(2) as pool, alice:
        assert pool.submit(acts).result() == NOBODY
        assert pool.submit(alice.bind(acts)).result() == ALICE
        assert pool.submit(copy_context().run, acts).result() == ALICE
        assert pool.submit(acts).result() == NOBODY  # nothing stays in the thread
        found: list[Any] = []
        for target in (acts, alice.bind(acts)):
            thread = threading.Thread(target=lambda target=target: found.append(target()))
            thread.start()
            thread.join()
        assert found == [NOBODY, ALICE]


FIRST_USER = """
from concurrent.futures import ThreadPoolExecutor
from agentguard import ConfigError, Decision, Denied, Guard

AGENTS = {"clerk": {"max_scope": ["read"]}}

def call(agent, tool):
    try:
        return agent.call(tool)
    except Denied as denied:
        return denied.code

try:
    guard = Guard.ephemeral(lambda _: Decision.allow(), config={"agents": AGENTS})
except ConfigError as error:
    print(error.code, error)
else:
    clerk, tool = guard.new_agent("clerk"), guard.tool(name="read", requires=["read"])(lambda: 1)
    with guard, ThreadPoolExecutor(1) as pool, guard.delegate("user:alice", scope=["read"]) as t:
        print(pool.submit(t.bind(call), clerk, tool).result())
        print(pool.submit(call, clerk, tool).result())
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has this setting since 3.14")
@pytest.mark.parametrize(
    ("inherit", "said"),
    [("0", "1\ndelegation.missing\n"), ("1", "config.invalid this Python gives each new thread")],
)
def test_a_pools_thread_never_acts_for_the_pools_first_user(inherit, said):
    command = [sys.executable, "-X", f"thread_inherit_context={inherit}", "-c", FIRST_USER]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(said)


def test_a_pool_that_was_made_in_a_block_remembers_nothing_of_it(acts, alice, bob):
    with alice:
        pool = ThreadPoolExecutor(1)
        assert pool.submit(alice.bind(acts)).result() == ALICE
    with pool, bob:
        assert pool.submit(acts).result() == NOBODY
        assert pool.submit(bob.bind(acts)).result() == BOB


def test_a_bound_function_brings_its_own_and_no_other(acts, alice, bob):
    bound = alice.bind(acts)
    with bob:
        assert bound() == ALICE
        assert acts() == BOB
    assert bound() == ALICE  # it is a delegation of its own, past any block
    assert acts() == NOBODY


async def test_executors_of_the_loop(acts, alice):
    loop = asyncio.get_running_loop()
    with alice:
        assert await loop.run_in_executor(None, acts) == NOBODY
        assert await loop.run_in_executor(None, alice.bind(acts)) == ALICE
        assert await asyncio.to_thread(acts) == ALICE
    assert await asyncio.to_thread(acts) == NOBODY


def test_a_thread_that_outlives_its_block(acts, alice, bob):
    left = threading.Event()

    def later():
        assert left.wait(60)
        return acts()

    with ThreadPoolExecutor(2) as pool:
        with bob, alice:
            copied = pool.submit(copy_context().run, later)
            bound = pool.submit(alice.bind(later))
        left.set()
        assert copied.result() == ENDED  # and not bob, who was outside
        assert bound.result() == ALICE


def test_one_delegation_in_many_threads(acts, alice, bob):
    """Entered and left in all of them at once, alone and inside another's."""
    start = threading.Barrier(16)
    wrong: list[Any] = []

    def work(number):
        start.wait()
        for _ in range(6):
            for outer in (None, bob):
                with ExitStack() as stack:
                    if outer is not None:
                        stack.enter_context(outer)
                    with alice:
                        found = acts() if number % 2 else (alice.bind(acts))()
                        wrong.extend([found] if found != ALICE else [])
                    found = acts()
                    wrong.extend([found] if found != (BOB if outer else NOBODY) else [])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert wrong == []
    assert alice._blocks == bob._blocks == []  # and nothing is held on to


def test_left_in_another_thread_than_it_was_entered_in(acts, alice, bob):
    with ThreadPoolExecutor(1) as pool, bob:
        pool.submit(alice.__enter__).result()
        assert pool.submit(acts).result() == ALICE
        alice.__exit__(None, None, None)
        assert pool.submit(acts).result() == ENDED
        assert acts() == BOB  # where it was left, nothing has changed
    assert acts() == NOBODY


# --- tasks ----------------------------------------------------------------------------------------


async def test_tasks_take_it_along_and_keep_apart(acts, alice, bob):
    async def inside(delegation):
        with delegation:
            await asyncio.sleep(0)
            first = acts()
            await asyncio.sleep(0)
            return first, await asyncio.create_task(inner()), acts()

    async def inner():
        await asyncio.sleep(0)
        return acts()

    found = await asyncio.gather(*(inside(one) for one in (alice, bob) * 20))
    assert list(found) == [(ALICE,) * 3, (BOB,) * 3] * 20
    assert acts() == NOBODY
    with alice:
        assert list(await asyncio.gather(inner(), inner())) == [ALICE, ALICE]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(inner())
        assert task.result() == ALICE


async def test_a_task_that_outlives_its_block(acts, alice, bob):
    """It finds that what was in force has ended, and never what was in force outside."""
    left = asyncio.Event()

    async def later():
        await left.wait()
        return acts()

    async def again():
        await left.wait()
        with bob:
            inside = acts()
        return inside, acts()

    with bob:
        with alice:
            tasks = [asyncio.create_task(later()), asyncio.create_task(again())]
            bound = asyncio.create_task(alice.bind(later)())
            await asyncio.sleep(0)
        left.set()
        assert await tasks[0] == ENDED
        assert await tasks[1] == (BOB, ENDED)
        assert await bound == ALICE
        assert acts() == BOB


async def test_callbacks_that_outlive_it(acts, alice, bob):
    loop, found = asyncio.get_running_loop(), []
    done = asyncio.Event()
    with bob, alice:
        loop.call_soon(lambda: found.append(acts()))
        await asyncio.sleep(0)
        loop.call_later(0.01, lambda: found.append(acts()))
        loop.call_later(0.02, done.set)
    await done.wait()
    assert found == [ALICE, ENDED]


async def test_a_cancelled_task_leaves_nothing(acts, alice):
    begun = asyncio.Event()

    async def forever():
        async with alice:
            begun.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(forever())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert acts() == NOBODY
    assert alice._blocks == []


async def test_what_a_tool_starts_has_its_agents_authority_until_the_call_is_over(
    guard, worker, acts, alice, asked
):
    over = asyncio.Event()

    async def later():
        await over.wait()
        return acts()

    async def at_once():
        return acts()

    found: list[Any] = []

    @guard.tool(requires=["read"])
    async def start():
        found.append(await asyncio.create_task(at_once()))
        found.append(asyncio.create_task(later()))

    with alice:
        await worker.acall(start)
        assert found[0] == ALICE
        assert worker.id in asked[-2]["delegation"]["chain"][1:-1]  # the robot's, through it
        over.set()
        assert await found[1] == ENDED  # though alice's block goes on
        assert acts() == ALICE


def test_in_a_context_of_its_own_nothing_is_in_force(acts, alice):
    with alice:
        assert Context().run(acts) == NOBODY
        assert copy_context().run(acts) == ALICE


# --- generators (more of them in delegation_generators/) -----------------------------------------


def test_a_generator_without_a_block_acts_for_whoever_asks(acts, alice, bob):
    def stream():
        while True:
            yield acts()

    items = stream()
    assert next(items) == NOBODY
    with alice:
        assert next(items) == ALICE
    with bob:
        assert next(items) == BOB


def test_a_generator_with_an_agent_under_a_delegation_needs_no_block(robot, whoami, alice, bob):
    def stream(agent):
        yield agent.call(whoami)
        yield agent.call(whoami)

    with bob:
        items = stream(robot.under(alice))
        assert next(items) == "user:alice"
    assert next(items) == "user:alice"


def test_a_context_manager_that_is_written_as_a_generator(acts, alice, bob):
    @contextmanager
    def session(delegation):
        with delegation:
            yield acts()

    with session(alice) as found:
        assert found == acts() == ALICE
        with session(bob):
            assert acts() == BOB
        with ExitStack() as stack:
            stack.enter_context(session(bob))
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


async def test_an_async_one(acts, alice, bob):
    @asynccontextmanager
    async def session(delegation):
        async with delegation:
            await asyncio.sleep(0)
            yield acts()

    async with session(alice) as found:
        assert found == acts() == ALICE
        async with session(bob):
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


async def test_a_context_manager_that_is_left_in_another_task(acts, alice, bob):
    """It is its own block that is left there, and not the task's; the first one's has ended."""

    @asynccontextmanager
    async def session():
        async with alice:
            yield

    first = session()
    with bob:
        await first.__aenter__()

        async def leave():
            with alice:
                await first.__aexit__(None, None, None)
                return acts()

        assert await asyncio.create_task(leave()) == ALICE
        assert acts() == ENDED
    assert alice._blocks == []


def test_a_context_manager_in_threads_of_a_pool(acts, alice, bob):
    """As a server does it: entered and left in copies of the context, and in other threads."""

    @contextmanager
    def session():
        with alice:
            yield acts()

    with bob, ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        sessions = [session() for _ in range(3)]
        for one in sessions:
            assert first.submit(copy_context().run, one.__enter__).result() == ALICE
            assert acts() == BOB
        for one in sessions:
            second.submit(copy_context().run, one.__exit__, None, None, None).result()
            assert acts() == BOB
    assert alice._blocks == []


# --- blocks that are not left in their order ------------------------------------------------------


def test_the_outer_one_is_left_first(acts, alice, bob):
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(alice)
    inner.enter_context(bob)
    assert acts() == BOB
    outer.close()
    assert acts() == BOB
    inner.close()
    assert acts() == NOBODY


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_in_whatever_order_they_are_left_it_ends_with_nothing(acts, alice, bob, guard, order):
    carol = guard.delegate("user:carol", scope=["read"])
    entered = (alice, bob, carol)
    stacks = [ExitStack() for _ in entered]
    for stack, delegation in zip(stacks, entered, strict=True):
        stack.enter_context(delegation)
    names = ["user:alice", "user:bob", "user:carol"]
    here = {0, 1, 2}
    for number in order:
        stacks[number].close()
        here.discard(number)
        innermost = names[max(here)] if here else None
        assert acts() == ((innermost, innermost) if innermost else NOBODY)
    with alice:
        assert acts() == ALICE
    assert acts() == NOBODY


def test_a_task_of_an_inner_block_when_the_outer_is_left_first(acts, alice, bob):
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(alice)
    context_of_alice = copy_context()
    inner.enter_context(bob)
    context_of_bob = copy_context()
    outer.close()
    assert context_of_alice.run(acts) == ENDED
    assert context_of_bob.run(acts) == BOB
    inner.close()
    assert context_of_bob.run(acts) == ENDED  # and not what its context had outside
    assert acts() == NOBODY


def test_left_in_another_function_than_it_was_entered_in(acts, alice, bob):
    def enter(stack):
        stack.enter_context(alice)

    def leave(stack):
        stack.close()

    stack = ExitStack()
    with bob:
        enter(stack)
        assert acts() == ALICE
        leave(stack)
        assert acts() == BOB
    assert alice._blocks == []


def test_what_was_left_elsewhere_is_not_passed_where_it_was_entered(acts, alice, bob):
    """Only what was left first *here* leads to what is outside of it."""
    here = copy_context()
    here.run(bob.__enter__)
    here.run(alice.__enter__)
    inner = here.copy()
    inner.run(bob.__enter__)
    here.run(alice.__exit__, None, None, None)
    assert here.run(acts) == BOB
    inner.run(bob.__exit__, None, None, None)
    assert inner.run(acts) == ENDED  # alice's, and not bob, who was outside of her
    here.run(bob.__exit__, None, None, None)
    assert here.run(acts) == NOBODY


def test_left_once_too_often(acts, alice, bob):
    with bob, alice:
        alice.__exit__(None, None, None)
        assert acts() == BOB
    assert acts() == NOBODY


# --- another guard --------------------------------------------------------------------------------


def test_another_guards_delegation_is_refused_and_hides_the_own_one(acts, alice):
    other = Guard.ephemeral(lambda _d: Decision.allow(), config={"agents": AGENTS})
    with other, alice, other.delegate("user:alice", scope=MAX_SCOPE):
        assert acts() == ("key.unknown", "key.unknown")
    assert acts() == NOBODY
