"""``Delegation``: what a principal has lent, as an application holds it and puts it in force.

How it is handed on to the agent that acts stands in ``guard/instance.py``; what a chain is, and
must hold, in ``delegation/``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, overload

from agentguard.delegation import blocks, generators, grant
from agentguard.delegation import context as ambient
from agentguard.delegation.chain import Chain
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import Credential
from agentguard.signing.keys import Signer

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")


class Holder(NamedTuple):
    """Who can hand a chain on: the key that signs, and the agent's credential for it.

    ``credential`` None is the issuer, for whom the chain's last delegatee has no key of its own.
    """

    signer: Signer
    credential: Credential | None


class Delegation:
    """What a principal has lent, to be put in force with ``with`` (or ``async with``).

    A block of a generator is refused, with ``ConfigError`` (``delegation.generator``): it would be
    in force for whoever asks for the items. ``iterate`` is for those.

    Made by ``Guard.delegate``, ``Guard.resume``, and for each guarded call that runs under one. It
    may be in force in many threads and tasks at once. ``narrowed`` gives one with less.
    """

    def __init__(
        self, chain: Chain, holder: Callable[[datetime], Holder], scope: tuple[str, ...]
    ) -> None:
        self._chain = chain
        self._holder = holder
        self._scope = scope
        self._key = (chain.hops[-1].digest, scope)
        self._blocks: list[_Block] = []
        self._left_elsewhere = 0

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """For agents: what it can be kept under: equal for one chain and scope, resumed or not."""
        return self._key

    @property
    def chain(self) -> Chain:
        """The hops so far."""
        return self._chain

    def holder(self, now: datetime) -> Holder:
        """For agents: return who can hand the chain on; raises where nobody here can."""
        return self._holder(now)

    @property
    def principal(self) -> str:
        """For whom: ``user:alice``."""
        return self._chain.principal

    @property
    def via(self) -> str | None:
        """The service through which it was lent; None for the application itself."""
        return self._chain.via

    @property
    def members(self) -> tuple[str, ...]:
        """The principal and all to whom it was handed, in their order."""
        return self._chain.members

    @property
    def scope(self) -> tuple[str, ...]:
        """What may be done with it, sorted; empty is nothing."""
        return self._scope

    @property
    def task_id(self) -> str | None:
        """The task that it is for."""
        return self._chain.root.task_id

    @property
    def id(self) -> str:
        """Its id (``jti``), by which ``agentguard token revoke`` cuts it off."""
        return self._chain.leaf.jti

    @property
    def expires_at(self) -> datetime:
        """When it ends."""
        return datetime.fromtimestamp(self._chain.leaf.expires_at, UTC)

    def narrowed(self, *, scope: Iterable[str]) -> Delegation:
        """Return this delegation with no more than ``scope``, for a sub-agent.

        Raises ``DelegationError``: ``invalid_scope`` for more than there is, ``scope.malformed``.
        """
        asked = grant.scopes(scope)
        more = [one for one in asked if one not in self._scope]
        if more:
            message = f"the delegation does not have the scope {' '.join(more)}"
            raise DelegationError(message, code="invalid_scope")
        return Delegation(self._chain, self._holder, asked)

    def dumps(self) -> bytes:
        """Write it down, to be put in force again in another process with ``Guard.resume``.

        It holds no key: only this trust domain can use it. Raises ``DelegationError``
        (``delegation.unstorable``) for one that was handed to an agent, or narrowed: its key is in
        this process alone, so store the one that it came from.
        """
        if not self._chain.leaf.is_asserted or self._scope != self._chain.leaf.scope:
            message = "what an agent was handed can't be stored: store what guard.delegate returned"
            raise DelegationError(message, code="delegation.unstorable")
        return self._chain.dumps()

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function`` such that it runs with this in force, in whatever thread or task.

        A plain thread pool does not take contexts along: ``pool.submit(delegation.bind(work))``.
        Raises ``ConfigError`` (``delegation.generator``) for a generator, as does a function that
        returns one: ``iterate`` is for those.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise _not_bound(function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def abound(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return abound  # type: ignore[return-value]

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            result = copy_context().run(self._run, function, *args, **kwargs)
            # what runs only later would do so past the block
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                raise _not_bound(function)
            return self._awaited(result) if inspect.iscoroutine(result) else result  # type: ignore[return-value]

        return bound

    @overload
    def iterate(
        self, items: AsyncIterable[Item] | Callable[[], AsyncIterable[Item]]
    ) -> AsyncGenerator[Item, None]: ...

    @overload
    def iterate(
        self, items: Iterable[Item] | Callable[[], Iterable[Item]]
    ) -> Generator[Item, None, None]: ...

    def iterate(self, items: Any) -> Any:
        """Return an iterator over ``items``, each of which is made with this in force.

        ``items`` is an iterable or an async one, a generator or a graph's stream, or a function
        that returns one, and is then called at once. All of it runs in one context, copied here:
        the tasks that it starts, too, and whoever asks for an item gets nothing of it. Where the
        iterator is closed or collected, ``items`` is closed, and what was in force has ended.

        Raises ``ConfigError``: ``config.invalid`` for anything else; ``delegation.generator`` for
        an iterator with a context of its own, made by ``iterate`` or by a sub-agent: a function
        that makes it is taken.
        """
        if generators.has_begun(items):
            message = (
                "this iterator has a context of its own already, where this is not in force: give "
                "a function that makes it, iterate(lambda: child.stream(...))"
            )
            raise ConfigError(message, code="delegation.generator")
        entry = ambient.Entry(self)
        context = generators.begun(entry)
        try:
            found = context.run(_iterable, items)
        except BaseException:
            context.run(entry.end)
            raise
        if isinstance(found, AsyncIterable):
            return generators.aitems(entry, context, lambda: found)
        return generators.items(entry, context, lambda: found)

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with self:
            return await coroutine

    def _run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self:
            return function(*args, **kwargs)

    def __enter__(self) -> Self:
        return self._enter(sys._getframe())  # noqa: SLF001

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(sys._getframe())  # noqa: SLF001

    async def __aenter__(self) -> Self:
        return self._enter(sys._getframe())  # noqa: SLF001

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(sys._getframe())  # noqa: SLF001

    def _enter(self, frame: FrameType) -> Self:
        generator = blocks.generator_of(frame)
        if generator is not None:
            raise _not_entered(generator)
        block = _Block(ambient.Entry(self), _asking(frame))
        self._blocks.append(block)
        block.entry.begin()
        return self

    def _leave(self, frame: FrameType) -> None:
        """End the block that is left: it may be in another context than it was entered in."""
        frame = _asking(frame)
        found = list(reversed(self._blocks))
        own = next((block for block in found if block.frame is frame), None)
        if own is None:
            # entered in one function and left in another, as a stack of contextlib's may be
            own = next((block for block in found if block.entry.is_innermost), None)
        if own is not None:
            self._blocks.remove(own)
            own.entry.end()
        else:
            # in another context, too: which block of several this was is not known, so the last
            # one to be left ends all of them
            self._left_elsewhere += 1
        if self._left_elsewhere and self._left_elsewhere >= len(self._blocks):
            self._left_elsewhere = 0
            for block in list(self._blocks):
                block.entry.end()
                with suppress(ValueError):  # another thread has just left it
                    self._blocks.remove(block)

    def __repr__(self) -> str:
        return f"<Delegation of {self.principal}: {' '.join(self._scope) or 'nothing'}>"


def current_delegation() -> Delegation | None:
    """Return the delegation in force here, None where there is none.

    Within a guarded call it is what was handed on to the agent that makes the call: a sub-agent is
    given less of it with ``narrowed``. Raises ``DelegationError`` (``delegation.ended``) for one
    that was in force here and has ended.
    """
    found = ambient.in_force()
    return found if isinstance(found, Delegation) else None


class _Block(NamedTuple):
    """A block in which a delegation is in force, and the frame of the code that entered it."""

    entry: ambient.Entry
    frame: FrameType


def _asking(frame: FrameType) -> FrameType:
    """Return the frame of what enters or leaves a block by the method that runs in ``frame``.

    What contextlib does is done for whoever calls it.
    """
    asks = frame.f_back
    while asks is not None and asks.f_globals.get("__name__") == "contextlib":
        asks = asks.f_back
    return asks or frame


def _iterable(items: object) -> Iterable[Any] | AsyncIterable[Any]:
    """Return what is to be gone through: ``items``, or what it returns as a function."""
    found = items if isinstance(items, Iterable | AsyncIterable) or not callable(items) else items()
    if isinstance(found, Iterable | AsyncIterable):
        return found
    if inspect.iscoroutine(found):
        found.close()
    message = f"iterate: expected an iterable or an async one, got a {type(found).__name__}"
    raise ConfigError(message)


_SHARED = "is a generator, and shares what is in force in it with whoever asks for its items"


def _not_bound(function: Callable[..., object]) -> ConfigError:
    name = getattr(function, "__name__", function)
    message = f"{name} {_SHARED}: go through it with delegation.iterate(...)"
    return ConfigError(message, code="delegation.generator")


def _not_entered(generator: FrameType) -> ConfigError:
    message = (
        f"the block belongs to {generator.f_code.co_qualname}, which {_SHARED}: leave the block "
        "out, and go through the generator, or through what it goes through, with "
        "delegation.iterate(...); or use agent.under(delegation) in it, or call a function that "
        "has the whole with statement in it"
    )
    return ConfigError(message, code="delegation.generator")
