"""Delegation blocks in generators: each is refused, and whole blocks beside them are not.

A generator shares the context of whoever asks for its items. ``robot`` may act by itself: where a
context is lost, ``robot`` acts for nobody, and where one leaks, for somebody else.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
)

import pytest
from streamed import ALICE, BOB, NOBODY, whole_with

from agentguard import ConfigError


class Session:
    """A context manager of an application's own, around a delegation."""

    def __init__(self, delegation):
        self._delegation = delegation

    def __enter__(self):
        return self._delegation.__enter__()

    def __exit__(self, *error):
        return self._delegation.__exit__(*error)

    async def __aenter__(self):
        await asyncio.sleep(0)
        return await self._delegation.__aenter__()

    async def __aexit__(self, *error):
        return await self._delegation.__aexit__(*error)


class Awaited(Session):
    """Its ``__aenter__`` is no coroutine function."""

    def __aenter__(self):
        return self

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self._delegation.__enter__()


@contextmanager
def managed(delegation):
    with delegation:
        yield


@asynccontextmanager
async def amanaged(delegation):
    async with delegation:
        yield


def a_with(delegation):
    with delegation:
        yield


def a_class(delegation):
    with Session(delegation):
        yield


def a_context_manager(delegation):
    with managed(delegation):
        yield


def a_context_manager_around_a_class(delegation):
    with managed(Session(delegation)):
        yield


def a_stack(delegation):
    with ExitStack() as stack:
        stack.enter_context(delegation)
        yield


def a_context_manager_on_a_stack(delegation):
    with ExitStack() as stack:
        stack.enter_context(managed(delegation))
        yield


def a_stack_in_a_comprehension(delegation):
    with ExitStack() as stack:
        assert all(stack.enter_context(one) for one in [delegation])
        yield


def a_stack_that_is_mapped(delegation):
    with ExitStack() as stack:
        list(map(stack.enter_context, [delegation]))
        yield


def a_helper(delegation):
    lock = threading.Lock()

    def enter(stack):
        with lock:
            stack.enter_context(delegation)

    with ExitStack() as stack:
        enter(stack)
        yield


def a_method(delegation):
    delegation.__enter__()
    yield
    delegation.__exit__(None, None, None)


def a_delegating_one(delegation):
    yield from a_with(delegation)


def a_coroutine_by_hand(delegation):
    async def inside():
        async with delegation:
            await asyncio.sleep(0)

    coroutine = inside()
    with closing(coroutine):
        yield coroutine.send(None)


def at_the_end_of_another_block(delegation):
    with ExitStack() as stack:
        stack.callback(next, a_with(delegation))
    yield


REFUSED = [
    a_with,
    a_class,
    a_context_manager,
    a_context_manager_around_a_class,
    a_stack,
    a_context_manager_on_a_stack,
    a_stack_in_a_comprehension,
    a_stack_that_is_mapped,
    a_helper,
    a_method,
    a_delegating_one,
    a_coroutine_by_hand,
    at_the_end_of_another_block,
]


def require_refused(error: ConfigError) -> None:
    assert error.code == "delegation.generator"
    assert "iterate" in str(error)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("generator", REFUSED)
def test_a_block_of_a_generator_is_refused(acts, alice, bob, generator, outside):
    with bob if outside else ExitStack():
        items = generator(alice)
        with pytest.raises(ConfigError) as caught:
            next(items)
        require_refused(caught.value)
        assert acts() == (BOB if outside else NOBODY)
    assert acts() == NOBODY
    assert alice._blocks == []


async def an_async_with(delegation):
    async with delegation:
        yield


async def a_plain_with(delegation):
    with delegation:
        yield


async def an_async_class(delegation):
    async with Session(delegation):
        yield


async def an_awaited_class(delegation):
    async with Awaited(delegation):
        yield


async def an_async_context_manager(delegation):
    async with amanaged(Session(delegation)):
        yield


async def an_async_stack(delegation):
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(delegation)
        yield


async def a_context_manager_on_an_async_stack(delegation):
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(amanaged(delegation))
        yield


async def an_async_helper(delegation):
    async def enter(stack):
        stack.enter_context(delegation)

    with ExitStack() as stack:
        await enter(stack)
        yield


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(
    "generator",
    [
        an_async_with,
        a_plain_with,
        an_async_class,
        an_awaited_class,
        an_async_context_manager,
        an_async_stack,
        a_context_manager_on_an_async_stack,
        an_async_helper,
    ],
)
async def test_a_block_of_an_async_generator_is_refused(acts, alice, bob, generator, outside):
    with bob if outside else ExitStack():
        for items in (generator(alice), generator(alice)):
            with pytest.raises(ConfigError) as caught:
                await asyncio.wait_for(anext(items), 10)
            require_refused(caught.value)
        assert acts() == (BOB if outside else NOBODY)
    assert alice._blocks == []


def whole_class(delegation, acts):
    with Session(delegation):
        return acts()


def whole_context_manager(delegation, acts):
    with managed(Session(delegation)):
        return acts()


def whole_decorated(delegation, acts):
    return managed(delegation)(acts)()


def whole_bound(delegation, acts):
    return delegation.bind(acts)()


@pytest.mark.parametrize(
    "whole", [whole_with, whole_class, whole_context_manager, whole_decorated, whole_bound]
)
def test_a_function_that_a_generator_calls_may_have_a_whole_block(acts, alice, bob, whole):
    def stream():
        for _ in range(2):
            yield whole(alice, acts), acts()

    with bob:
        for item in stream():
            assert item == (ALICE, BOB)
            assert acts() == BOB
    assert alice._blocks == []


async def whole_async_with(delegation, acts):
    async with delegation:
        await asyncio.sleep(0)
        return acts()


async def whole_plain_with(delegation, acts):
    with delegation:
        await asyncio.sleep(0)
        return acts()


async def whole_async_class(delegation, acts):
    async with Session(delegation):
        await asyncio.sleep(0)
        return acts()


async def whole_awaited_class(delegation, acts):
    async with Awaited(delegation):
        await asyncio.sleep(0)
        return acts()


async def whole_async_context_manager(delegation, acts):
    async with amanaged(Session(delegation)):
        await asyncio.sleep(0)
        return acts()


async def whole_task(delegation, acts):
    async def inside():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(delegation)
            return acts()

    return await asyncio.create_task(inside())


@pytest.mark.parametrize(
    "whole",
    [
        whole_async_with,
        whole_plain_with,
        whole_async_class,
        whole_awaited_class,
        whole_async_context_manager,
        whole_task,
    ],
)
async def test_a_coroutine_that_a_generator_awaits_may_have_one(acts, alice, bob, whole):
    async def stream():
        for _ in range(2):
            yield await whole(alice, acts), acts()

    with bob:
        assert [item async for item in stream()] == [(ALICE, BOB)] * 2
        assert await asyncio.wait_for(anext(stream()), 10) == (ALICE, BOB)
    assert alice._blocks == []


def test_outside_of_generators_every_way_to_enter_one_is_open(acts, alice, bob):
    with bob:
        for enter in (managed, Session, lambda one: managed(Session(one))):
            with enter(alice):
                assert acts() == ALICE
            with ExitStack() as stack:
                assert all(stack.enter_context(one) is None for one in [managed(alice)])
                stack.enter_context(enter(alice))
                assert acts() == ALICE
            assert acts() == BOB
    assert alice._blocks == []


async def test_a_task_is_no_part_of_the_generator_that_runs_its_loop(acts, alice):
    async def inside():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(Session(alice))
            await asyncio.sleep(0)
            return acts()

    async def outside():
        await asyncio.sleep(0)
        return acts()

    async def both():
        return list(await asyncio.gather(inside(), outside()))

    def run():
        with asyncio.Runner() as runner:
            yield runner.run(both())

    assert await asyncio.to_thread(lambda: next(run())) == [ALICE, NOBODY]
