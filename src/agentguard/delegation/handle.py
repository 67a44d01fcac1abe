"""``Delegation``, the public API's object: a principal's authority, and where it is in force.

``chain.py`` and its neighbours say what a chain is. ``guard/instance.py`` accepts a delegation for
an agent, with a hop of the agent's own.
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
from agentguard.delegation.chain import Chain
from agentguard.delegation.context import Activation, in_force
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import Credential
from agentguard.signing.keys import Signer

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")


class Holder(NamedTuple):
    """Whoever can extend a chain: the key that signs, and the credential of the agent with the key.

    ``credential`` is None for the issuer, which signs for a delegatee without a key.
    """

    signer: Signer
    credential: Credential | None


class Delegation:
    """The authority that a principal delegates; ``with`` and ``async with`` put it in force.

    ``Guard.delegate`` and ``Guard.resume`` make delegations. A delegation may be in force in many
    threads and tasks at once. In a generator, ``with`` raises ``ConfigError``
    (``delegation.generator``), because the delegation would be in force for the generator's caller
    too: use ``iterate``.
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
        """For agents: a key for caches, equal for delegations with one chain and scope."""
        return self._key

    @property
    def chain(self) -> Chain:
        """The hops from the principal to the holder."""
        return self._chain

    def holder(self, now: datetime) -> Holder:
        """For agents: return the chain's holder; raise if the holder is in another process."""
        return self._holder(now)

    @property
    def principal(self) -> str:
        """The principal, as in ``user:alice``."""
        return self._chain.principal

    @property
    def via(self) -> str | None:
        """The service that asked for the delegation; None for the application itself."""
        return self._chain.via

    @property
    def members(self) -> tuple[str, ...]:
        """The principal, and then each delegatee of the chain."""
        return self._chain.members

    @property
    def scope(self) -> tuple[str, ...]:
        """The scope, sorted; an empty scope permits nothing."""
        return self._scope

    @property
    def task_id(self) -> str | None:
        """The task for which the principal delegates."""
        return self._chain.root.task_id

    @property
    def id(self) -> str:
        """The id (``jti``) of the last hop, by which a delegation is revoked."""
        return self._chain.leaf.jti

    @property
    def expires_at(self) -> datetime:
        """The end of the delegation, in UTC."""
        return datetime.fromtimestamp(self._chain.leaf.expires_at, UTC)

    def narrowed(self, *, scope: Iterable[str]) -> Delegation:
        """Return this delegation with no more than ``scope``, for a sub-agent.

        Raises ``DelegationError``: ``invalid_scope`` for more than there is, ``scope.malformed``.
        """
        narrower = grant.parse_scopes(scope)
        excess = [token for token in narrower if token not in self._scope]
        if excess:
            message = (
                f"the delegation does not have the scope {' '.join(excess)}: it has "
                f"{' '.join(sorted(self._scope))}"
            )
            raise DelegationError(message, code="invalid_scope", delegation=self)
        return Delegation(self._chain, self._holder, narrower)

    def dumps(self) -> bytes:
        """Encode the delegation for ``Guard.resume``, in this or another process.

        The bytes hold no key: only this trust domain can use them. Raises ``DelegationError``
        (``delegation.unstorable``) for a delegation that an agent has accepted, whose key is in
        this process alone, and for a narrowed one: store the delegation that it came from.
        """
        if not self._chain.leaf.is_asserted or self._scope != self._chain.leaf.scope:
            message = "what an agent was handed can't be stored: store what guard.delegate returned"
            raise DelegationError(message, code="delegation.unstorable")
        return self._chain.dumps()

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that runs ``function`` with this delegation in force, in any thread.

        Use it with a plain thread pool, which passes no context on:
        ``pool.submit(delegation.bind(work))``. Raises ``ConfigError`` (``delegation.generator``)
        for a generator function; the function that is returned raises likewise for a function
        that returns a generator. Use ``iterate`` for generators.
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
            # a generator's code would run after the block
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
        """Return a generator over ``items``, whose code runs with this delegation in force.

        ``items`` is an iterable, sync or async, such as a generator or a graph's stream; or a
        function that returns an iterable, which is called at once. Its code, and each task that it
        starts, runs in one copy of the present context. The delegation is not in force for the
        code that asks for items. When the returned generator is closed or collected, ``items`` is
        closed and the delegation is no longer in force.

        Raises ``ConfigError``: ``config.invalid`` for another value; ``delegation.generator`` for
        a generator that ``iterate`` or a sub-agent returned, which has a context of its own. Pass a
        function that makes that generator instead.
        """
        if generators.has_own_context(items):
            message = (
                "this iterator has a context of its own already, where this is not in force: give "
                "a function that makes it, iterate(lambda: child.stream(...))"
            )
            raise ConfigError(message, code="delegation.generator")
        activation = Activation(self)
        context = generators.begin_in_copy(activation)
        try:
            iterable = context.run(_iterable, items)
        except BaseException:
            context.run(activation.end)
            raise
        if isinstance(iterable, AsyncIterable):
            return generators.aitems(activation, context, lambda: iterable)
        return generators.items(activation, context, lambda: iterable)

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
        block = _Block(Activation(self), _caller(frame))
        self._blocks.append(block)
        block.activation.begin()
        return self

    def _leave(self, frame: FrameType) -> None:
        """End the block that is left, which may have been entered in another context."""
        frame = _caller(frame)
        newest = list(reversed(self._blocks))
        own = next((block for block in newest if block.frame is frame), None)
        if own is None:
            # one function enters the block and another leaves it, as contextlib's stacks can
            own = next((block for block in newest if block.activation.is_innermost), None)
        if own is not None:
            self._blocks.remove(own)
            own.activation.end()
        else:
            # The context is another one too, so nothing shows which block this was. The last
            # block that is left ends all of them.
            self._left_elsewhere += 1
        if self._left_elsewhere and self._left_elsewhere >= len(self._blocks):
            self._left_elsewhere = 0
            for block in list(self._blocks):
                block.activation.end()
                with suppress(ValueError):  # another thread has just left it
                    self._blocks.remove(block)

    def __repr__(self) -> str:
        return f"<Delegation of {self.principal}: {' '.join(self._scope) or 'nothing'}>"


def current_delegation() -> Delegation | None:
    """Return the delegation in force here, or None.

    Within a guarded call this is the delegation of the call's agent; use ``narrowed`` to give a
    sub-agent less. Raises ``DelegationError`` (``delegation.ended``) for a delegation whose block
    or call has ended.
    """
    delegation = in_force()
    return delegation if isinstance(delegation, Delegation) else None


class _Block(NamedTuple):
    """A block in which a delegation is in force, and the frame of the code that entered it."""

    activation: Activation
    frame: FrameType


def _caller(frame: FrameType) -> FrameType:
    """Return the frame that enters or leaves a block through the method in ``frame``."""
    caller = frame.f_back
    # contextlib's stacks enter and leave a block for their own caller
    while caller is not None and caller.f_globals.get("__name__") == "contextlib":
        caller = caller.f_back
    return caller or frame


def _iterable(items: object) -> Iterable[Any] | AsyncIterable[Any]:
    """Return ``items``, or the iterable that ``items`` returns as a function."""
    is_function = callable(items) and not isinstance(items, Iterable | AsyncIterable)
    result = items() if is_function else items  # type: ignore[operator]
    if isinstance(result, Iterable | AsyncIterable):
        return result
    if inspect.iscoroutine(result):
        result.close()
    message = f"iterate: expected an iterable or an async one, got a {type(result).__name__}"
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
