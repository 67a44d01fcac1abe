"""``Delegation.iterate``: items are made for one user, whoever asks for them.

A generator shares the context of whoever asks for its items. ``iterate`` makes each item in a
context of its own. ``robot`` may act by itself: where a context is lost, ``robot`` acts for nobody,
and where one leaks, for somebody else.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    ExitStack,
    aclosing,
)
from contextvars import Context, copy_context

import greenlet
import pytest
from streamed import ALICE, BOB, ENDED, NOBODY, SCOPE, whole_with

from agentguard import ConfigError, current_delegation
from agentguard.delegation import context


@pytest.fixture
def astream(acts):
    """Items of which each is made half here, half in a task that it starts."""

    async def work():
        await asyncio.sleep(0)
        return acts()

    async def astream():
        for _ in range(3):
            yield acts(), await asyncio.create_task(work()), await asyncio.to_thread(acts)

    return astream


async def ask(items):
    return await anext(items)


# --- iterate: one user, whoever asks --------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True])
def test_items_are_made_for_one_user_and_nothing_leaks(acts, alice, bob, stream, outside):
    with bob if outside else ExitStack():
        items = alice.iterate(stream())
        here = BOB if outside else NOBODY
        for _ in range(3):
            assert next(items) == ALICE
            assert acts() == here
            assert copy_context().run(acts) == here
            assert alice.bind(acts)() == ALICE
        assert list(items) == []
        assert acts() == here
    assert acts() == NOBODY


def test_asked_inside_of_another_block_and_of_a_call(guard, robot, acts, alice, bob, stream):
    items = alice.iterate(stream())
    assert next(items) == ALICE
    found = []
    tool = guard.tool(name="tool")(lambda: found.extend([next(items), acts()[0]]))
    with bob:
        assert next(items) == ALICE
        robot.call(tool)
        assert acts() == BOB
    assert found == [ALICE, "user:bob"]
    assert acts() == NOBODY


@pytest.mark.parametrize("outside", [False, True])
def test_each_item_in_another_context_and_thread(acts, alice, bob, stream, outside):
    """As a server does it that asks a sync generator in a thread pool."""
    with bob if outside else ExitStack(), ThreadPoolExecutor(2) as pool:
        items = alice.iterate(stream())
        assert copy_context().run(next, items) == ALICE
        assert Context().run(next, items) == ALICE
        assert pool.submit(next, items).result() == ALICE
        assert pool.submit(next, items, None).result() is None
        assert acts() == (BOB if outside else NOBODY)


@pytest.mark.parametrize("outside", [False, True])
async def test_each_item_in_another_task(acts, alice, bob, astream, outside):
    """And what the generator starts is the user's too: ``wait_for`` asks in a task of its own."""
    here = BOB if outside else NOBODY

    async def task():
        return acts()

    with bob if outside else ExitStack():
        asked = alice.iterate(astream())
        assert await asyncio.create_task(ask(asked)) == (ALICE,) * 3
        assert await asyncio.create_task(task()) == here  # between the items
        assert await asyncio.to_thread(acts) == here
        assert await asyncio.wait_for(anext(asked), 10) == (ALICE,) * 3
        assert await asyncio.create_task(ask(asked), context=Context()) == (ALICE,) * 3
        await asked.aclose()
        assert acts() == here
    assert acts() == NOBODY


def test_generators_of_many_users_in_turns(acts, guard, stream):
    users = [f"user:{number:03}" for number in range(20)]
    streams = [guard.delegate(user, scope=["read"]).iterate(stream()) for user in users]
    with guard.delegate("user:outer", scope=["read"]):
        for _ in range(2):
            assert [next(items)[0] for items in streams] == users
            assert acts() == ("user:outer", ("read",))
        for items in streams[::2]:
            items.close()
        assert [next(items)[0] for items in streams[1::2]] == users[1::2]
    del streams[:], items
    gc.collect()
    assert acts() == NOBODY


async def test_streamed_responses_of_many_users(guard, astream):
    """Each in a task of its own, as a server does it, some given up half way."""

    async def respond(user):
        async for item in guard.delegate(user, scope=["read"]).iterate(astream()):
            yield item

    async def serve(number):
        user, found = f"user:{number:03}", []
        items = respond(user)
        async for item in items:
            found.extend(item)
            if number % 3 == 0 and len(found) == 6:
                break
        if number % 2:
            await items.aclose()
        assert set(found) == {(user, ("read",))}

    await asyncio.gather(*(serve(number) for number in range(40)))


def test_what_is_put_in_force_inside_is_nearer(acts, alice, bob, stream):
    def both():
        yield acts()
        yield from bob.iterate(stream())
        yield whole_with(bob, acts)
        yield acts()

    assert list(alice.iterate(both())) == [ALICE, BOB, BOB, BOB, BOB, ALICE]


def test_a_context_that_is_entered_on_purpose(acts, alice, bob):
    """What it has in force counts in it, also where an item is made in it."""
    with bob:
        bobs = copy_context()

    def items():
        with ThreadPoolExecutor(1) as pool:
            yield Context().run(acts), bobs.run(acts), acts(), pool.submit(acts).result()

    assert next(alice.iterate(items())) == (NOBODY, ENDED, ALICE, NOBODY)


def test_the_delegation_is_the_current_one_and_others_are_not_seen(alice, bob):
    def items():
        yield current_delegation()

    with bob:
        assert list(alice.iterate(items())) == [alice]
        assert current_delegation() is bob


# --- iterate: what it takes -----------------------------------------------------------------------


class Both:
    """Iterable and nothing else, its iterators having no ``close``."""

    def __init__(self, acts):
        self._acts = acts
        self._left = 2

    def __iter__(self):
        return map(Both._act, [self] * 2)

    def _act(self):
        return self._acts()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return self._acts()


async def test_any_iterable_and_a_function_that_makes_one(acts, alice, stream, astream):
    assert list(alice.iterate(acts() for _ in range(2))) == [ALICE] * 2
    assert list(alice.iterate(Both(acts).__iter__())) == [ALICE] * 2
    assert list(alice.iterate([1, 2])) == [1, 2]
    assert [item async for item in alice.iterate(Both(acts))] == [ALICE] * 2
    assert list(alice.iterate(stream)) == [ALICE] * 3
    assert [item async for item in alice.iterate(astream)] == [(ALICE,) * 3] * 3
    assert list(alice.iterate(lambda: [acts()])) == [ALICE]
    assert list(alice.iterate(functools.partial(map, lambda _: acts(), "ab"))) == [ALICE] * 2
    assert acts() == NOBODY


async def test_anything_else_is_refused(acts, alice):
    async def coroutine():
        """Nothing to go through."""

    for wrong in (None, 5, coroutine(), lambda: 5, coroutine):
        with pytest.raises(ConfigError, match="expected an iterable") as caught:
            alice.iterate(wrong)
        assert caught.value.code == "config.invalid"
    with pytest.raises(ZeroDivisionError):
        alice.iterate(lambda: 1 / 0)
    assert acts() == NOBODY


async def test_an_iterator_with_a_context_of_its_own_is_refused(alice, bob, stream, astream):
    """It would go on for whom it began; the function that makes it begins it here."""
    for made in (bob.iterate(stream()), bob.iterate(astream())):
        with pytest.raises(ConfigError, match="lambda") as caught:
            alice.iterate(made)
        assert caught.value.code == "delegation.generator"
    assert list(alice.iterate(lambda: bob.iterate(stream()))) == [BOB] * 3


# --- iterate: how it ends -------------------------------------------------------------------------


@pytest.fixture
def left():
    """What an inner generator found while it was closed."""
    return []


@pytest.fixture
def closable(acts, left):
    """A generator that leaves a context behind, and says for whom it was closed."""

    def closable():
        try:
            yield copy_context()
            yield acts()
        finally:
            left.append(acts())

    return closable


def end_by_closing(items):
    items.close()


def end_by_going_on(items):
    list(items)


def end_by_an_exception(items):
    with pytest.raises(ZeroDivisionError):
        items.throw(ZeroDivisionError)


def end_by_collection(items):
    del items
    gc.collect()


@pytest.mark.parametrize(
    "end", [end_by_closing, end_by_going_on, end_by_an_exception, end_by_collection]
)
def test_it_ends_in_its_context_however_it_ends(acts, alice, bob, closable, left, end):
    made = [alice.iterate(closable())]
    with bob:
        copied = next(made[0])
        assert copied.run(acts) == ALICE
        end(made.pop())
        assert left == [ALICE]
        assert copied.run(acts) == ENDED
        assert acts() == BOB
    assert acts() == NOBODY


def test_a_loop_that_is_left_early(acts, alice, bob, closable, left):
    with bob:
        copied = None
        for item in alice.iterate(closable()):
            copied = item
            break
        assert copied is not None
        assert left == [ALICE]
        assert copied.run(acts) == ENDED
        assert acts() == BOB


def test_an_exception_in_the_generator_comes_out_as_it_is(acts, alice):
    def fails():
        yield copy_context()
        raise KeyError(acts()[0])

    items = alice.iterate(fails())
    copied = next(items)
    with pytest.raises(KeyError, match="user:alice"):
        next(items)
    assert copied.run(acts) == ENDED


async def test_an_async_one_that_is_closed_in_another_task(acts, alice, bob, left):
    go = asyncio.Event()

    async def late():
        await go.wait()
        return acts()

    async def inner():
        try:
            yield asyncio.create_task(late())
            yield None
        finally:
            await asyncio.sleep(0)
            left.append(acts())

    with bob:
        for closed in ("by a task", "by collection"):
            go.clear()
            items = alice.iterate(inner())
            task = await anext(items)
            assert task is not None

            async def close(items):
                with bob:
                    await items.aclose()
                    return acts()

            if closed == "by a task":
                assert await asyncio.create_task(close(items)) == BOB
            del items
            gc.collect()
            for _ in range(9):  # the loop closes it in a task of its own
                await asyncio.sleep(0)
            go.set()
            assert await task == ENDED
            assert acts() == BOB
    assert left == [ALICE] * 2
    assert acts() == NOBODY


async def test_what_a_generators_tasks_do_while_it_waits(acts, alice, bob):
    """They are inside of it, though nobody asks."""
    go = asyncio.Event()

    async def work():
        await go.wait()
        return acts()

    async def inner():
        yield asyncio.create_task(work())
        yield None

    with bob:
        async with aclosing(alice.iterate(inner())) as items:
            task = await anext(items)
            go.set()
            assert await task == ALICE
            assert acts() == BOB


async def test_time_outs_reach_into_it(acts, alice, left):
    async def inner():
        try:
            async with asyncio.timeout(0.01):
                yield acts()
                await asyncio.sleep(3600)
        finally:
            left.append(acts())

    items = alice.iterate(inner())
    assert await anext(items) == ALICE
    with pytest.raises(TimeoutError):
        await anext(items)

    async def hangs():
        try:
            yield acts()
            await asyncio.sleep(3600)
        finally:
            left.append(acts())

    items = alice.iterate(hangs())
    assert await anext(items) == ALICE
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(items), 0.01)
    assert left == [ALICE] * 2
    assert acts() == NOBODY


def test_where_it_began_may_be_over(acts, alice, bob, stream):
    """It is a delegation of its own, past any block; and its own block may be inside of it."""
    with bob:
        items = alice.iterate(stream())
    assert list(items) == [ALICE] * 3
    with alice:
        items = bob.iterate(stream())
        assert next(items) == BOB
    assert next(items) == BOB


def test_one_that_nobody_has_asked(acts, alice, stream):
    alice.iterate(stream()).close()
    del stream
    gc.collect()
    assert acts() == NOBODY


# --- narrowings, greenlets and threads ------------------------------------------------------------


def test_a_narrowing_inside_of_it_lessens_it(guard, acts, bob):
    wide = guard.delegate("user:alice", scope=SCOPE)

    class Less(context.Narrowing):
        __slots__ = ()

    def items():
        within = copy_context()
        within.run(Less(lambda _lent: wide.narrowed(scope=["read"])).begin)
        yield within.run(acts)
        yield acts()

    with bob:
        asked = wide.iterate(items())
        found = [copy_context().run(next, asked) for _ in range(2)]
    assert found == [ALICE, ("user:alice", ("read", "write"))]


def test_a_greenlet_goes_on_where_its_parent_is(acts, alice, bob):
    """SQLAlchemy's asyncio runs sync code so, in the context of whoever waits for it."""

    def spawned():
        child = greenlet.greenlet(acts)
        child.gr_context = greenlet.getcurrent().gr_context
        return child.switch()

    def items():
        yield spawned()

    with bob:
        assert list(alice.iterate(items())) == [ALICE]
        assert spawned() == BOB


def test_many_threads_ask_at_once(alice):
    """Those in copies of the context, while the generator asks itself."""
    wrong: Counter[str] = Counter()
    over = threading.Event()

    def ask():
        try:
            if context.in_force() is not alice:
                wrong["another"] += 1
        except Exception as error:  # noqa: BLE001  whatever it is
            wrong[repr(error)] += 1

    def work():
        while not over.is_set():
            ask()

    def items():
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
        assert next(alice.iterate(items())) == {}
    finally:
        sys.setswitchinterval(interval)
