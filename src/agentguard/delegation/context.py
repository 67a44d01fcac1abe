"""What is in force where code runs: the call that a tool runs in, and the delegation around it.

A context variable carries both, so that neither threads nor tasks mix them up. What is in force
ends with the block or the call that put it there, also in contexts that were copied meanwhile: a
task that outlives it finds that it has ended, and never what was in force outside.

A generator would share it with whoever asks for its items: no block of one is let begin
(``blocks.py``), and what is to be in force for items is so in a context of theirs
(``generators.py``).

Within a ``Narrowing`` less is in force than around it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Final

from agentguard.approvals.nested import NestedCalls
from agentguard.errors import DelegationError, UnguardedCallError


class Entry:
    """One block, or one running call, in which ``delegation`` is in force until it ends."""

    __slots__ = ("_delegation", "_outer", "_passed", "_running", "_token")

    def __init__(self, delegation: object) -> None:
        self._delegation = delegation
        self._outer: Entry | None = None
        self._running: Running | None = None
        self._token: Token[Entry | None] | None = None
        self._passed: Token[Entry | None] | None = None

    def begin(self) -> None:
        """Put it in force in this context."""
        self._outer, self._running = _IN_FORCE.get(), _RUNNING.get()
        self._token = _IN_FORCE.set(self)

    def end(self) -> None:
        """End it everywhere; here, what was in force before is so again.

        It may be another context than it began in, as where a response that streams is closed; and
        something that began inside it may go on.
        """
        self._delegation = _ENDED
        token, self._token = self._token, None
        innermost = _IN_FORCE.get()
        if not _was_reset(token):
            return
        if innermost is not self:
            # what is inside goes on here: when it is left, this token leads past what was left now
            self._passed = _IN_FORCE.set(innermost)
            return
        outer = _IN_FORCE.get()
        while outer is not None and _was_reset(outer._passed):  # noqa: SLF001
            outer = _IN_FORCE.get()

    @property
    def is_innermost(self) -> bool:
        """Whether it is what is in force in this context."""
        return _IN_FORCE.get() is self

    @property
    def delegation(self) -> object:
        """What is in force; raises ``DelegationError`` (``delegation.ended``)."""
        if self._delegation is _ENDED:
            message = (
                "the delegation that was in force here has ended: whatever outlives its block or "
                "its call (a task, a generator) is given one with agent.under(delegation)"
            )
            raise DelegationError(message, code="delegation.ended")
        return self._delegation

    @property
    def is_nearest(self) -> bool:
        """Whether no other block, and no guarded call, has begun here since it did."""
        return self.is_innermost and self._running is _RUNNING.get()

    def lessened(self, delegation: object) -> object:
        """Return ``delegation``, which comes from elsewhere, less what the narrowings here take."""
        return delegation if self._outer is None else self._outer.lessened(delegation)


class Narrowing(Entry):
    """A block in which ``lessen`` says what is in force, of what is around it; of nothing, nothing.

    It ends, at the latest, with what is in force around it. ``lessen`` raises ``DelegationError``
    where a delegation can't be lessened so.
    """

    __slots__ = ("_lessen",)

    def __init__(self, lessen: Callable[[object], object]) -> None:
        super().__init__(None)
        self._lessen = lessen

    @property
    def delegation(self) -> object:
        """What is in force; raises ``DelegationError``."""
        super().delegation  # noqa: B018  raises where it has ended
        found = None if self._outer is None else self._outer.delegation
        return None if found is None else self._lessen(found)

    def lessened(self, delegation: object) -> object:
        """Return what may be used here of a delegation that comes from elsewhere."""
        super().delegation  # noqa: B018
        return self._lessen(super().lessened(delegation))


_ENDED: Final = object()
_RUNNING: ContextVar[Running | None] = ContextVar("agentguard_running", default=None)
_IN_FORCE: ContextVar[Entry | None] = ContextVar("agentguard_in_force", default=None)


def in_force() -> object:
    """Return what is in force here, None for nothing.

    Raises ``DelegationError`` (``delegation.ended``) for what was, and has ended.
    """
    entry = _IN_FORCE.get()
    return None if entry is None else entry.delegation


def _was_reset(token: Token[Entry | None] | None) -> bool:
    """Put back what was in force before ``token``, if that is of this context."""
    if token is None:
        return False
    try:
        _IN_FORCE.reset(token)
    except (ValueError, RuntimeError):  # another context, or another thread was quicker
        return False
    return True


def innermost() -> Entry | None:
    """For adapters: return the block or call whose delegation is in force here, None for none."""
    return _IN_FORCE.get()


def is_lent_by_a_call() -> bool:
    """For adapters: whether a guarded call is running here, and hands something on.

    Or did, and has ended: then nothing else takes its place either.
    """
    if _RUNNING.get() is None:
        return False
    try:
        return in_force() is not None
    except DelegationError:
        return True


def lessened(delegation: object) -> object:
    """For adapters: return what may be used here of a delegation that comes from elsewhere.

    Raises ``DelegationError`` where a block has ended, or takes more than there is.
    """
    entry = innermost()
    return delegation if entry is None else entry.lessened(delegation)


def idempotency_key() -> str:
    """Return the id of the invocation in which this tool runs (32 hex digits).

    Hand it to a service that takes idempotency keys: one authorization is one key, so that an
    effect of a call in doubt can be asked about, and is never had twice by a retry below the tool.
    Raises ``UnguardedCallError`` (``tool.unguarded``) outside a guarded call.
    """
    running = _RUNNING.get()
    if running is None:
        message = "no guarded call is running here: call the tool with agent.call"
        raise UnguardedCallError(message)
    return running.invocation_id


def inside() -> NestedCalls | None:
    """For adapters: return how the calls within the call that runs here were left, None for none.

    A call that has returned is complete once none of them ``waits``.
    """
    running = _RUNNING.get()
    return None if running is None else running.inside


class Running:
    """Lets ``idempotency_key`` answer within a call, and puts in force what the call may hand on.

    Where its authority lends nothing, what is in force stays so: an agent acts on its own authority
    only where that is nothing.
    """

    __slots__ = ("_entry", "_token", "inside", "invocation_id")

    def __init__(self, invocation_id: str, inside: NestedCalls, lends: object) -> None:
        self.invocation_id = invocation_id
        self.inside = inside
        self._entry = Entry(lends) if lends is not None else None

    def __enter__(self) -> None:
        self._token = _RUNNING.set(self)
        if self._entry is not None:
            self._entry.begin()

    def __exit__(self, *_raised: object) -> None:
        if self._entry is not None:
            self._entry.end()
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _RUNNING.reset(self._token)
