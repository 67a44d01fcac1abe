"""Blocks of generators: in force while the generator runs, wherever it is asked, and only then.

``robot`` may act by itself: where a block is lost, it acts for whoever is outside, or for nobody.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard, ambient

FOR: ContextVar[Any] = ContextVar("for")
SCOPE = ["read", "write"]
ALICE = ("user:alice", ("read",))
BOB = ("user:bob", ("read", "write"))
NOBODY, ENDED = None, "delegation.ended"


@pytest.fixture
def guard():
    def policy(document):
        lent = document.get("delegation")
        FOR.set(lent and (lent["subject"], tuple(lent["scope"])))
        return Decision.allow()

    agents = {"robot": {"authority": "own", "max_scope": SCOPE}}
    with Guard.ephemeral(policy, config={"agents": agents}) as opened:
        yield opened


@pytest.fixture
def acts(guard):
    """For whom the robot acts here, and with which scope."""
    robot = guard.new_agent("robot")
    whoami = guard.tool(name="whoami")(lambda: FOR.get())  # noqa: PLW0108

    def attempt():
        try:
            return robot.call(whoami)
        except Denied as denied:
            return denied.code

    return attempt


@pytest.fixture
def alice(guard):
    return guard.delegate("user:alice", scope=SCOPE).narrowed(scope=["read"])


@pytest.fixture
def bob(guard):
    return guard.delegate("user:bob", scope=SCOPE)


@pytest.fixture
def stream(acts):
    def stream(block):
        with block:
            yield acts()
            yield acts()
            yield acts()

    return stream


class Session:
    """A context manager of an application's own, around a delegation."""

    def __init__(self, delegation):
        self._delegation = delegation

    def __enter__(self):
        return self._delegation.__enter__()

    def __exit__(self, *error):
        return self._delegation.__exit__(*error)

    async def __aenter__(self):
        return await self._delegation.__aenter__()

    async def __aexit__(self, *error):
        return await self._delegation.__aexit__(*error)


# --- resumed elsewhere ----------------------------------------------------------------------------


def test_resumed_inside_of_another_block(acts, alice, bob, stream):
    items = stream(alice)
    assert next(items) == ALICE
    with bob:
        assert next(items) == ALICE
        assert acts() == BOB
        assert next(items) == ALICE
        assert list(items) == []
        assert acts() == BOB
    assert acts() == NOBODY


def test_resumed_inside_of_a_call(guard, acts, alice, bob, stream):
    items = stream(alice)
    next(items)
    found = []
    tool = guard.tool(name="tool")(lambda: found.extend([next(items)[0], acts()[0]]))
    with bob:
        guard.new_agent("robot").call(tool)
    assert found == ["user:alice", "user:bob"]


@pytest.mark.parametrize("outside", [True, False])
def test_each_item_in_another_context(acts, alice, bob, stream, outside):
    """As a server does it that asks a sync generator in a thread pool."""
    with bob if outside else ExitStack():
        items = stream(alice)
        assert [copy_context().run(next, items) for _ in range(3)] == [ALICE] * 3
        assert copy_context().run(next, items, None) is None
        assert acts() == (BOB if outside else NOBODY)
    assert alice._blocks == []


async def test_each_item_in_another_task(acts, alice, bob):
    async def items():
        async with alice:
            yield acts()
            await asyncio.sleep(0)
            yield acts()

    async def ask(asked):
        return await anext(asked)

    with bob:
        asked = items()
        assert [await asyncio.create_task(ask(asked)) for _ in range(2)] == [ALICE] * 2
        await asked.aclose()
        assert acts() == BOB


def test_what_is_begun_inside_is_nearer(guard, acts, bob, stream):
    """In a sub-agent's run in a context of its own, too, that a resumed generator asks."""
    wide = guard.delegate("user:alice", scope=SCOPE)

    class Less(ambient.Narrowing):
        __slots__ = ()

    def items():
        with wide:
            within = copy_context()
            within.run(Less(lambda _lent: wide.narrowed(scope=["read"])).begin)
            yield within.run(acts)
            yield within.run(acts)
            with bob:
                yield acts()

    with bob:
        asked = items()
        assert [copy_context().run(next, asked) for _ in range(3)] == [ALICE, ALICE, BOB]
    asked.close()


def test_a_context_that_is_entered_on_purpose(acts, alice, bob):
    """What it has in force counts in it, also where a generator runs it."""
    with bob:
        bobs = copy_context()

        def items():
            with alice:
                yield bobs.run(acts), Context().run(acts), acts()

        assert next(items()) == (BOB, NOBODY, ALICE)


# --- entered by a function that the generator calls -----------------------------------------------


def test_a_class_may_enter_it_for_the_generator(acts, alice, bob, stream):
    items, others = stream(Session(alice)), stream(Session(bob))
    assert (next(items), next(others)) == (ALICE, BOB)
    assert acts() == ENDED  # and neither alice nor bob
    assert (next(items), next(others)) == (ALICE, BOB)
    items.close()
    assert next(others) == BOB
    others.close()
    assert acts() == NOBODY
    assert alice._blocks == bob._blocks == []


async def test_a_class_may_enter_it_for_an_async_generator(acts, alice, bob):
    async def items():
        async with Session(alice):
            yield acts()
            await asyncio.sleep(0)
            yield acts()

    with bob:
        asked = items()
        assert await anext(asked) == ALICE
        assert acts() == BOB
        assert await anext(asked) == ALICE
        await asked.aclose()
        assert acts() == BOB
    assert alice._blocks == []


def test_outside_of_a_generator_the_class_enters_it_for_its_user(acts, alice, bob):
    with Session(bob), Session(alice):
        assert acts() == ALICE
    assert acts() == NOBODY


async def test_a_task_is_no_part_of_the_generator_that_runs_its_loop(acts, alice):
    """The twin: its block is its own, and nobody else's."""

    async def inside():
        with Session(alice):
            await asyncio.sleep(0)
            return acts()

    async def outside():
        await asyncio.sleep(0)
        return acts()

    def run():
        with asyncio.Runner() as runner:
            yield runner.run(both())

    async def both():
        return list(await asyncio.gather(inside(), outside()))

    assert await asyncio.to_thread(lambda: next(run())) == [ALICE, NOBODY]


def test_a_generator_expression_enters_it_for_whoever_goes_through_it(acts, alice, bob):
    with bob, ExitStack() as stack:
        assert all(stack.enter_context(one) for one in [alice])
        assert acts() == ALICE
    assert acts() == NOBODY
    assert alice._blocks == []


# --- greenlets and threads ------------------------------------------------------------------------


def test_a_greenlet_goes_on_where_its_parent_is(acts, alice, bob):
    """SQLAlchemy's asyncio runs sync code so, in the context of whoever waits for it."""
    greenlet = pytest.importorskip("greenlet")

    def spawned():
        child = greenlet.greenlet(acts)
        child.gr_context = greenlet.getcurrent().gr_context
        return child.switch()

    def items():
        with alice:
            yield spawned()

    with bob:
        assert list(items()) == [ALICE]
        assert spawned() == BOB


def test_many_threads_ask_at_once(alice):
    """Those in copies of the context, while the generator asks itself."""
    wrong: Counter[str] = Counter()
    over = threading.Event()

    def ask():
        try:
            if ambient.in_force() is not alice:
                wrong["another"] += 1
        except Exception as error:  # noqa: BLE001  whatever it is
            wrong[repr(error)] += 1

    def work():
        while not over.is_set():
            ask()

    def items():
        with alice:
            contexts = [copy_context() for _ in range(3)]
            threads = [threading.Thread(target=one.run, args=(work,)) for one in contexts]
            for thread in threads:
                thread.start()
            for _ in range(20_000):
                ask()
            over.set()
            for thread in threads:
                thread.join()
            yield wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert next(items()) == {}
    finally:
        sys.setswitchinterval(interval)
