"""What is in force where code runs: the call that a tool runs in, and the delegation around it.

A context variable carries both, so that neither threads nor tasks mix them up. What is in force
ends with the block or the call that put it there, also in contexts that were copied meanwhile: a
task that outlives it finds that it has ended, and never what was in force outside.

A generator runs in the context of those who ask for its items, and they may be many. What a block
in it has put in force is so while the generator runs, whoever asks and whatever is in force there,
and not between its items for whoever else shares the context.

Within a ``Narrowing`` less is in force than around it.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar, Token
from types import FrameType
from typing import Final

from agentguard.errors import DelegationError, UnguardedCallError


class Entry:
    """One block, or one running call, in which ``delegation`` is in force until it ends.

    ``generator`` is the frame of the generator whose block it is, None for all other blocks.
    """

    __slots__ = (
        *("_began_in", "_delegation", "_generator", "_outer", "_running"),
        *("_thread", "_token", "_within"),
    )

    def __init__(self, delegation: object, generator: FrameType | None = None) -> None:
        self._delegation = delegation
        self._generator = generator
        self._outer: Entry | None = None
        self._within: Entry | None = None
        self._running: str | None = None
        self._token: Token[Entry | None] | None = None
        self._began_in: Context | None = None  # where that matters: it may be passed there
        self._thread: int | None = None  # whose first context that is, which it never leaves

    def begin(self) -> None:
        """Put it in force in this context."""
        self._outer, self._running = _IN_FORCE.get(), _RUNNING.get()
        within = _standing(self._outer)
        self._within = within if within is not None and within.runs else None
        self._token = _IN_FORCE.set(self)
        if self._generator is not None:
            self._began_in = _here()
            if not _is_entered(self._began_in):
                self._thread = threading.get_ident()
            others = _OF_GENERATORS.get(self._generator, ())
            _OF_GENERATORS[self._generator] = (*others, self)

    def end(self) -> None:
        """End it everywhere; here, what was in force before is so again.

        It may be another context than it began in, where an async generator or a streaming response
        is closed; and something that began inside it may go on.
        """
        self._delegation = _ENDED
        if self._generator is not None:
            self._leave_generator(self._generator)
        innermost = _IN_FORCE.get()
        try:
            if self._token is not None:
                _IN_FORCE.reset(self._token)
        except ValueError:
            return  # another context
        self._token = None
        if innermost is not self:
            _IN_FORCE.set(innermost)
            self._began_in = _here()
            return
        outer = self._outer
        while outer is not None and outer.has_ended and outer.is_passed:
            outer = outer.outer
            _IN_FORCE.set(outer)

    def _leave_generator(self, generator: FrameType) -> None:
        self._generator = None
        left = tuple(one for one in _OF_GENERATORS.get(generator, ()) if one is not self)
        if left:
            _OF_GENERATORS[generator] = left
        else:
            _OF_GENERATORS.pop(generator, None)

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
        return self.is_here and (self._generator is None or not self.runs)

    @property
    def runs(self) -> bool:
        """Whether the code here is its generator's, if it is a generator's block."""
        generator = self._generator  # another thread may end it meanwhile
        return generator is None or _is_running(generator)

    @property
    def is_here(self) -> bool:
        """Whether it began in this context, and may be passed in it."""
        return self._began_in is not None and self._began_in is _here()

    @property
    def is_away(self) -> bool:
        """Whether the context that it began in is none of those that this thread is in."""
        if self._thread is not None:
            return self._thread != threading.get_ident()
        return self._began_in is not None and not _is_entered(self._began_in)

    def is_inside(self, other: Entry) -> bool:
        """Whether it is ``other``, or began where that was in force."""
        entry: Entry | None = self
        while entry is not None and entry is not other:
            entry = entry._within  # noqa: SLF001
        return entry is other

    @property
    def around(self) -> Entry | None:
        """Where it began, the block or call that was in force, or else whatever is outside of it.

        A generator's block may be none that its context knows of.
        """
        return self._within or self._outer

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
        around = _standing(self.around)
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
        found = _in_force(self.around)
        return None if found is None else self._lessen(found)

    def lessened(self, delegation: object) -> object:
        """Return what may be used here of a delegation that comes from elsewhere."""
        super().delegation  # noqa: B018
        return self._lessen(super().lessened(delegation))


_ENDED: Final = object()
_RUNNING: ContextVar[str | None] = ContextVar("agentguard_running", default=None)
_IN_FORCE: ContextVar[Entry | None] = ContextVar("agentguard_in_force", default=None)
_HERE: ContextVar[None] = ContextVar("agentguard_here", default=None)
_OF_GENERATORS: Final[dict[FrameType, tuple[Entry, ...]]] = {}
"""The blocks of generators that were not left yet, by the generator's frame."""


def in_force() -> object:
    """Return what is in force here, None for nothing.

    Raises ``DelegationError`` (``delegation.ended``) for what was, and has ended, and where nothing
    is in force but in a generator that waits here: who asks for its items is not inside of it.
    """
    return _in_force(_IN_FORCE.get())


def _in_force(entry: Entry | None) -> object:
    """Return what is in force where ``entry`` was the last to begin; raises as ``in_force``."""
    standing = _standing(entry)
    if standing is not None:
        return standing.delegation
    if _waits(entry):
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
    resumed = _of_running_generator()
    if resumed is None or (entry is not None and entry.is_inside(resumed)):
        return entry
    # whoever asks for its items began what is in force around it, or asks in another context
    return resumed


def _waits(entry: Entry | None) -> bool:
    """Whether there is a generator's block among those that the code here is outside of."""
    while entry is not None:
        if not entry.has_ended:
            return True
        entry = entry.outer
    return False


def _of_running_generator() -> Entry | None:
    """Return the innermost block of the generators that run here, None for none.

    One that began in a context that somebody is in, below this one, is none: here, code runs in a
    context that it was given on purpose.
    """
    if not _OF_GENERATORS:
        return None
    for frame in _stack():
        blocks = _OF_GENERATORS.get(frame, ())[::-1]
        if blocks:
            here = next((block for block in blocks if block.is_here), None)
            return here or next((block for block in blocks if block.is_away), None)
    return None


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
    return any(running is frame for running in _stack())


def _stack() -> Iterator[FrameType]:
    """Yield the frames of the code that runs here, the innermost first.

    A greenlet that shares its parent's context (SQLAlchemy's do) goes on in its parent's frames.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    greenlets = sys.modules.get("greenlet")
    below = greenlets.getcurrent().parent if greenlets is not None else None
    while frame is not None:
        yield frame
        frame = frame.f_back
        while frame is None and below is not None:
            frame, below = below.gr_frame, below.parent


def _here() -> Context:
    """Return this context itself; ``copy_context`` returns another one."""
    token = _HERE.set(None)
    _HERE.reset(token)
    return next(one for one in gc.get_referents(token) if isinstance(one, Context))


def _is_entered(context: Context) -> bool:
    """Whether somebody runs something in a context; a thread's first one is never entered."""
    try:
        context.run(int)  # no Python code, during which another thread could want to enter it
    except RuntimeError:
        return True
    return False


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


class Running:
    """Lets ``idempotency_key`` answer within a call, and puts in force what the call may hand on.

    ``lends`` None leaves in force what is: an agent acts on its own authority only where that is
    nothing.
    """

    __slots__ = ("_entry", "_invocation_id", "_token")

    def __init__(self, invocation_id: str, lends: object) -> None:
        self._invocation_id = invocation_id
        self._entry = Entry(lends) if lends is not None else None

    def __enter__(self) -> None:
        self._token = _RUNNING.set(self._invocation_id)
        if self._entry is not None:
            self._entry.begin()

    def __exit__(self, *_raised: object) -> None:
        if self._entry is not None:
            self._entry.end()
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _RUNNING.reset(self._token)
