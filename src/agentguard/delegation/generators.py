"""Iterators whose items are made in a context of their own, whoever asks for them.

There something is in force (``context.py``), for all that runs in it: for the tasks that it starts
too, and threads to which contexts are copied. Whoever asks gets nothing of it, and lends nothing.
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

from agentguard.delegation.context import Entry

Item = TypeVar("Item")


def begun(entry: Entry) -> Context:
    """Return a copy of this context in which ``entry`` has begun."""
    context = copy_context()
    context.run(entry.begin)
    return context


def items(
    entry: Entry, context: Context, start: Callable[[], Iterable[Item]]
) -> Generator[Item, None, None]:
    """Go through what ``start`` returns, in ``context``, and end ``entry`` there with it.

    However it ends: where this is closed or collected, what it goes through is closed.
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
            context.run(entry.end)


async def aitems(
    entry: Entry, context: Context, start: Callable[[], AsyncIterable[Item]]
) -> AsyncGenerator[Item, None]:
    """Go through what ``start`` returns; the async twin of ``items``."""
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
            context.run(entry.end)


def has_begun(iterable: object) -> bool:
    """Whether it is one of these, and has its context already."""
    codes = (getattr(iterable, "gi_code", None), getattr(iterable, "ag_code", None))
    return items.__code__ in codes or aitems.__code__ in codes


class _Within(Awaitable[Item]):
    """What ``make`` returns, awaited in this task, with each of its steps in ``context``.

    A task of its own for each item would have a context too, but no time-out and no cancel scope
    that the items share would live in it.
    """

    __slots__ = ("_context", "_make")

    def __init__(self, context: Context, make: Callable[[], Awaitable[Item]]) -> None:
        self._context = context
        self._make = make

    def __await__(self) -> Generator[Any, Any, Item]:
        run = self._context.run
        steps: Any = run(lambda: self._make().__await__())
        try:
            waited = run(next, steps)
            while True:
                try:
                    sent = yield waited
                except GeneratorExit:
                    run(steps.close)
                    raise
                except BaseException as error:  # noqa: BLE001  what is awaited decides what it means
                    waited = run(steps.throw, error)
                else:
                    waited = run(steps.send, sent)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
