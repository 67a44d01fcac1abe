"""The extent of a sub-agent: while it runs, no more than its scope is in force.

What is in force where stands in the core's ``ambient.py``, what is wrapped so in ``subagent.py``.
A stream runs in a context of its own, copied where it begins: whoever asks for its items, from
wherever and as far as he likes, neither gets the sub-agent's scope nor lends it his own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar

from agentguard import Agent, Delegation, DelegationError
from agentguard.ambient import Narrowing

Item = TypeVar("Item")


class Extent(Narrowing):
    """One run of the sub-agent ``agent``, within which ``scope`` is all that is in force."""

    __slots__ = ("agent",)

    def __init__(self, agent: Agent, scope: tuple[str, ...]) -> None:
        def lessen(delegation: object) -> object:
            return _narrowed(delegation, agent, scope)

        super().__init__(lessen)
        self.agent = agent

    @property
    def delegation(self) -> object:
        """What is in force: of what its agent is ``under``, or else of what is around it."""
        own = self.agent.delegation
        return super().delegation if own is None else self.lessened(own)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let it last as long as a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def stream(self, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """Begin it now, in a context of its own; there ``start`` is called, and its items made."""
        context = self._began()
        return _items(self, context, start)

    def astream(self, start: Callable[[], AsyncIterator[Item]]) -> AsyncIterator[Item]:
        """Begin it now; the async twin of ``stream``."""
        context = self._began()
        return _aitems(self, context, start)

    def _began(self) -> Context:
        context = copy_context()
        context.run(self.begin)
        return context


def _narrowed(delegation: object, agent: Agent, scope: tuple[str, ...]) -> object:
    if not isinstance(delegation, Delegation):
        return delegation
    try:
        return delegation.narrowed(scope=scope)
    except DelegationError as error:
        message = f"the sub-agent {agent.name} is to have more than there is: {error}"
        raise DelegationError(message, code=error.code) from error


def _items(extent: Extent, context: Context, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    items: Iterator[Item] | None = None
    try:
        items = context.run(start)
        while True:
            try:
                item = context.run(next, items)
            except StopIteration:
                return
            yield item
    finally:
        try:
            close = getattr(items, "close", None)
            if close is not None:
                context.run(close)
        finally:
            context.run(extent.end)


async def _aitems(
    extent: Extent, context: Context, start: Callable[[], AsyncIterator[Item]]
) -> AsyncIterator[Item]:
    items: AsyncIterator[Item] | None = None
    try:
        items = context.run(start)
        while True:
            try:
                item = await _Within(context, items.__anext__)
            except StopAsyncIteration:
                return
            yield item
    finally:
        try:
            close = getattr(items, "aclose", None)
            if close is not None:
                await _Within(context, close)
        finally:
            context.run(extent.end)


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
