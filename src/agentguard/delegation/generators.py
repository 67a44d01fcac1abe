"""Generators whose code runs in a context of their own, whoever asks for their items.

A delegation is in force in that context (``context.py``): for the generator's code, for tasks that
the code starts, and for threads that get a copy of the context. The caller's context stays as it
is, and the generator's code does not see the caller's changes to it.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextvars import Context, copy_context
from typing import Any, TypeVar

from agentguard.delegation.context import Activation

Item = TypeVar("Item")


def begin_in_copy(activation: Activation) -> Context:
    """Begin ``activation`` in a copy of the present context, and return the copy."""
    context = copy_context()
    context.run(activation.begin)
    return context


def items(
    activation: Activation, context: Context, start: Callable[[], Iterable[Item]]
) -> Generator[Item, None, None]:
    """Yield the items of the iterable that ``start`` returns, whose code runs in ``context``.

    At the end, or when this generator is closed or collected, the iterable is closed and the
    activation ends, both in ``context``.
    """
    inner: Iterator[Item] | None = None
    try:
        inner = context.run(lambda: iter(start()))
        while True:
            try:
                item = context.run(next, inner)
            except StopIteration:
                return
            yield item
    finally:
        try:
            close = getattr(inner, "close", None)
            if close is not None:
                context.run(close)
        finally:
            context.run(activation.end)


async def aitems(
    activation: Activation, context: Context, start: Callable[[], AsyncIterable[Item]]
) -> AsyncGenerator[Item, None]:
    """Yield the items of an async iterable; the async twin of ``items``."""
    inner: AsyncIterator[Item] | None = None
    try:
        inner = context.run(lambda: aiter(start()))
        while True:
            try:
                item = await _Within(context, inner.__anext__)
            except StopAsyncIteration:
                return
            yield item
    finally:
        try:
            close = getattr(inner, "aclose", None)
            if close is not None:
                await _Within(context, close)
        finally:
            context.run(activation.end)


def has_own_context(iterable: object) -> bool:
    """Whether a value is a generator of this module, which has a context of its own."""
    codes = (getattr(iterable, "gi_code", None), getattr(iterable, "ag_code", None))
    return items.__code__ in codes or aitems.__code__ in codes


class _Within(Awaitable[Item]):
    """Awaits the awaitable that ``make`` returns, with each of its steps run in ``context``.

    The present task awaits it. A new task for each item would have a context too, but no timeout
    and no cancel scope could span two items.
    """

    __slots__ = ("_context", "_make")

    def __init__(self, context: Context, make: Callable[[], Awaitable[Item]]) -> None:
        self._context = context
        self._make = make

    def __await__(self) -> Generator[Any, Any, Item]:
        run = self._context.run
        steps: Any = run(lambda: self._make().__await__())
        try:
            pending = run(next, steps)
            while True:
                try:
                    value = yield pending
                except GeneratorExit:
                    run(steps.close)
                    raise
                except BaseException as error:  # noqa: BLE001  the awaitable handles it, or raises
                    pending = run(steps.throw, error)
                else:
                    pending = run(steps.send, value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
