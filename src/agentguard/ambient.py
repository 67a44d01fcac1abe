"""What is in force where code runs: the call that a tool runs in, and the delegation around it.

A context variable carries both, so that neither threads nor tasks mix them up. What is in force
ends with the block or the call that put it there, also in contexts that were copied meanwhile: a
task that outlives it finds that it has ended, and never what was in force outside.

A generator shares the context of those who ask for its items. What a block in it has put in force
is so while the generator runs, and not between its items for whoever else shares the context.

Within a ``Narrowing`` less is in force than around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from types import FrameType
from typing import Final

from agentguard.errors import DelegationError, UnguardedCallError


class Entry:
    """One block, or one running call, in which ``delegation`` is in force until it ends.

    ``generator`` is the frame of the generator whose block it is, None for all other blocks.
    """

    __slots__ = ("_delegation", "_generator", "_here", "_outer", "_running", "_token")

    def __init__(self, delegation: object, generator: FrameType | None = None) -> None:
        self._delegation = delegation
        self._generator = generator
        self._outer: Entry | None = None
        self._running: str | None = None
        self._token: Token[Entry | None] | None = None
        self._here: Token[None] | None = None

    def begin(self) -> None:
        """Put it in force in this context."""
        self._outer, self._running = _IN_FORCE.get(), _RUNNING.get()
        self._token = _IN_FORCE.set(self)
        if self._generator is not None:
            self._here = _HERE.set(None)

    def end(self) -> None:
        """End it everywhere; here, what was in force before is so again.

        It may be another context than it began in, where an async generator or a streaming response
        is closed; and something that began inside it may go on.
        """
        self._delegation, self._generator = _ENDED, None
        innermost = _IN_FORCE.get()
        try:
            if self._token is not None:
                _IN_FORCE.reset(self._token)
        except ValueError:
            return  # another context
        self._token = None
        if innermost is not self:
            _IN_FORCE.set(innermost)
            self._here = _HERE.set(None)
            return
        outer = self._outer
        while outer is not None and outer.has_ended and outer.is_passed:
            outer = outer.outer
            _IN_FORCE.set(outer)

    @property
    def is_innermost(self) -> bool:
        """Whether it is what is in force in this context."""
        return _IN_FORCE.get() is self

    @property
    def outer(self) -> Entry | None:
        """What was in force when it began."""
        return self._outer

    @property
    def is_passed(self) -> bool:
        """Whether the code that runs here, in the context that it began in, is outside of it.

        Its generator waits to be asked for its next item, or it was left before what is inside it.
        """
        return self._is_here() and (self._generator is None or not _is_running(self._generator))

    def _is_here(self) -> bool:
        if self._here is None:
            return False
        try:
            _HERE.reset(self._here)  # the one way to ask whether a token is of this context
        except ValueError:
            return False
        self._here = _HERE.set(None)
        return True

    @property
    def has_ended(self) -> bool:
        """Whether it was left."""
        return self._delegation is _ENDED

    @property
    def delegation(self) -> object:
        """What is in force; raises ``DelegationError`` (``delegation.ended``)."""
        if self.has_ended:
            message = (
                "the delegation that was in force here has ended: whatever outlives its block or "
                "its call (a task, a generator) is given one with agent.under(delegation)"
            )
            raise DelegationError(message, code="delegation.ended")
        return self._delegation

    @property
    def is_nearest(self) -> bool:
        """Whether no other block, and no guarded call, has begun here since it did."""
        return innermost() is self and self._running == _RUNNING.get()

    def lessened(self, delegation: object) -> object:
        """Return ``delegation``, which comes from elsewhere, less what the narrowings here take."""
        around = _standing(self._outer)
        return delegation if around is None else around.lessened(delegation)


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
        found = _in_force(self._outer)
        return None if found is None else self._lessen(found)

    def lessened(self, delegation: object) -> object:
        """Return what may be used here of a delegation that comes from elsewhere."""
        super().delegation  # noqa: B018
        return self._lessen(super().lessened(delegation))


_ENDED: Final = object()
_RUNNING: ContextVar[str | None] = ContextVar("agentguard_running", default=None)
_IN_FORCE: ContextVar[Entry | None] = ContextVar("agentguard_in_force", default=None)
_HERE: ContextVar[None] = ContextVar("agentguard_here", default=None)


def in_force() -> object:
    """Return what is in force here, None for nothing.

    Raises ``DelegationError`` (``delegation.ended``) for what was, and has ended, and where nothing
    is in force but in a generator that waits here: who asks for its items is not inside of it.
    """
    return _in_force(_IN_FORCE.get())


def _in_force(entry: Entry | None) -> object:
    """Return what is in force where ``entry`` was the last to begin; raises as ``in_force``."""
    waits = False
    while entry is not None and entry.is_passed:
        waits = waits or not entry.has_ended
        entry = entry.outer
    if entry is not None:
        return entry.delegation
    if waits:
        message = (
            "a generator that waits here to be asked for its next item has a delegation in force, "
            "and nothing else has: use agent.under(delegation), or make it a context manager"
        )
        raise DelegationError(message, code="delegation.ended")
    return None


def _standing(entry: Entry | None) -> Entry | None:
    """Return the innermost block or call that the code here is inside of, from ``entry`` on."""
    while entry is not None and entry.is_passed:
        entry = entry.outer
    return entry


def innermost() -> Entry | None:
    """For adapters: return the block or call whose delegation is in force here, None for none."""
    return _standing(_IN_FORCE.get())


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


def _is_running(frame: FrameType) -> bool:
    """Whether a frame is on the stack of the code that runs here."""
    running: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


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
    return running


@contextmanager
def running(invocation_id: str, lends: object) -> Iterator[None]:
    """Let ``idempotency_key`` answer within a call, and put in force what the call may hand on.

    ``lends`` None leaves in force what is: an agent acts on its own authority only where that is
    nothing.
    """
    token = _RUNNING.set(invocation_id)
    entry = Entry(lends) if lends is not None else None
    if entry is not None:
        entry.begin()
    try:
        yield
    finally:
        if entry is not None:
            entry.end()
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _RUNNING.reset(token)
