"""``Delegation``: what a principal has lent, as an application holds it and puts it in force.

How it is handed on to the agent that acts stands in ``instance.py``; what a chain is, and must
hold, in ``delegation/``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

from agentguard import ambient
from agentguard.delegation import grant
from agentguard.delegation.chain import Chain
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import Credential
from agentguard.keys import Signer

P = ParamSpec("P")
R = TypeVar("R")


class Holder(NamedTuple):
    """Who can hand a chain on: the key that signs, and the agent's credential for it.

    ``credential`` None is the issuer, for whom the chain's last delegatee has no key of its own.
    """

    signer: Signer
    credential: Credential | None


class Delegation:
    """What a principal has lent, to be put in force with ``with`` (or ``async with``).

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
        if not self._chain.leaf.asserted or self._scope != self._chain.leaf.scope:
            message = "what an agent was handed can't be stored: store what guard.delegate returned"
            raise DelegationError(message, code="delegation.unstorable")
        return self._chain.dumps()

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function`` such that it runs with this in force, in whatever thread or task.

        A plain thread pool does not take contexts along: ``pool.submit(delegation.bind(work))``.
        Raises ``ConfigError`` (``delegation.generator``), as does a function that returns one.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise _generator(function)
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
                raise _generator(function)
            return self._awaited(result) if inspect.iscoroutine(result) else result  # type: ignore[return-value]

        return bound

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with self:
            return await coroutine

    def _run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self:
            return function(*args, **kwargs)

    def __enter__(self) -> Self:
        return self._enter(sys._getframe(1))  # noqa: SLF001  the block's

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(sys._getframe(1))  # noqa: SLF001

    async def __aenter__(self) -> Self:
        return self._enter(sys._getframe(1))  # noqa: SLF001

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(sys._getframe(1))  # noqa: SLF001

    def _enter(self, frame: FrameType) -> Self:
        frame = _asking(frame)
        generator = _generator_of(frame)
        block = _Block(ambient.Entry(self, generator), frame, generator)
        self._blocks.append(block)
        block.entry.begin()
        return self

    def _leave(self, frame: FrameType) -> None:
        """End the block that is left: it may be in another context than it was entered in."""
        frame = _asking(frame)
        own = next((block for block in reversed(self._blocks) if block.frame is frame), None)
        if own is None:
            # entered in one function and left in another, as a stack of contextlib's may be
            own = self._entered_elsewhere(_generator_of(frame))
        if own is not None:
            self._blocks.remove(own)
            own.entry.end()
        else:
            # in another context, too: which block of several this was is not known, so the last
            # one to be left ends all of them
            self._left_elsewhere += 1
        if self._left_elsewhere and self._left_elsewhere >= len(self._plain):
            self._left_elsewhere = 0
            for block in self._plain:
                block.entry.end()
                with suppress(ValueError):  # another thread has just left it
                    self._blocks.remove(block)

    def _entered_elsewhere(self, generator: FrameType | None) -> _Block | None:
        """Return the block that code of ``generator``, or of none, leaves; None if that is open."""
        if generator is not None:
            for block in reversed(self._blocks):
                if block.generator is generator:
                    return block
        found = self._plain or self._blocks
        return next((block for block in reversed(found) if block.entry.is_innermost), None)

    @property
    def _plain(self) -> list[_Block]:
        return [block for block in self._blocks if block.generator is None]

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


class _Block:
    """A block in which a delegation is in force, and the frame of the code that entered it.

    ``generator`` is the frame of the generator that this code is part of, None if of none.
    """

    __slots__ = ("entry", "frame", "generator")

    def __init__(self, entry: ambient.Entry, frame: FrameType, generator: FrameType | None) -> None:
        self.entry = entry
        self.frame = frame
        self.generator = generator


def _asking(frame: FrameType) -> FrameType:
    """Return the frame for which contextlib enters or leaves a block."""
    while frame.f_back is not None and _is_contextlibs(frame):
        frame = frame.f_back
    return frame


def _generator_of(frame: FrameType) -> FrameType | None:
    """Return the frame of the generator that code is part of, None where it is of none.

    Functions that a generator calls, and coroutines that it awaits, are part of it: a class may
    enter the block for it. A generator that contextlib makes a context manager of is part of
    whoever enters that, and a generator expression, which has no block, of whoever goes through it.
    """
    at: FrameType | None = frame
    while at is not None:
        asks = at.f_back
        if _is(at, _GENERATOR) and at.f_code.co_name != "<genexpr>":
            while asks is not None and _is(asks, _GENERATOR):
                asks = asks.f_back
            if asks is None or not _is_contextlibs(asks):
                return at
            asks = _asking(asks)
        elif _is(at, _COROUTINE) and not (asks and _is(asks, _GENERATOR | _COROUTINE)):
            return None  # an event loop runs it, whoever runs that
        at = asks
    return None


_COROUTINE: Final = inspect.CO_COROUTINE
_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _is(frame: FrameType, flags: int) -> bool:
    return bool(frame.f_code.co_flags & flags)


def _is_contextlibs(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "contextlib"


def _generator(function: Callable[..., object]) -> ConfigError:
    message = (
        f"{getattr(function, '__name__', function)} is a generator, which runs in the contexts of "
        "those who ask for its items: use agent.under(delegation) in it"
    )
    return ConfigError(message, code="delegation.generator")
