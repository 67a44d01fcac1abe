"""A run of a crew: what is paused in it, and the places of its calls, so that it can go on.

A run that has a name (``resumable``) can be begun again, in another process, too. A model does not
repeat itself, so that a call is known again by what it is (who calls which tool with what), and by
how many of the same came before it in the run.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    aclosing,
    closing,
    contextmanager,
)
from contextvars import ContextVar
from typing import Final, NamedTuple, NoReturn, TypeVar

from agentguard import ApprovalPending, ConfigError, DelegationError, current_delegation
from agentguard.adapters import CallSite

Item = TypeVar("Item")


class Paused(BaseException):
    """Stops a crew while a call waits for people; nothing on CrewAI's way out catches it.

    Whoever began the work turns it into the ``ApprovalPending`` that it carries (``agents.py``).
    """

    def __init__(self, pending: ApprovalPending) -> None:
        super().__init__(str(pending))
        self.pending = pending


class Run:
    """One try of a run; ``name`` None for one that can't be begun again.

    ``pending`` is the request for which a paused run waits; no call runs in a paused run.
    ``logged_requests`` are the ids of the requests that the application's log has named.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.pending: ApprovalPending | None = None
        self.logged_requests: set[str] = set()
        self._ordinals: defaultdict[Key, set[int]] = defaultdict(set)
        self._nested: dict[tuple[Key, int], list[Place]] = {}
        self._lock = threading.Lock()

    def pause(self, pending: ApprovalPending) -> NoReturn:
        """Stop all that is part of this run; raises ``Paused``."""
        self.pending = pending
        raise Paused(pending)

    def require_running(self) -> None:
        """Raise ``Paused`` where the run has paused."""
        if self.pending is not None:
            raise Paused(self.pending)

    def claim(self, key: Key) -> Place:
        """Return the place of the next call that is this one.

        Where that call was left incomplete, those within it have their places again.
        """
        with self._lock:
            ordinals = self._ordinals[key]
            ordinal = next(n for n in itertools.count(1) if n not in ordinals)
            ordinals.add(ordinal)
            for within in self._nested.pop((key, ordinal), ()):
                self._ordinals[within.key].discard(within.ordinal)
        return Place(self, key, ordinal)

    def reclaim(self, places: Iterable[Place]) -> None:
        """Take the places of calls that were made within one that is replayed."""
        with self._lock:
            for place in places:
                self._ordinals[place.key].add(place.ordinal)

    def release(self, place: Place, within: Sequence[Place] = ()) -> None:
        """Let another call have the place of one that did not run, has failed, or is incomplete.

        The calls that were completed ``within`` it keep theirs until it is made again.
        """
        with self._lock:
            self._ordinals[place.key].discard(place.ordinal)
            if within:
                self._nested[place.key, place.ordinal] = [*within]


class Key(NamedTuple):
    """What a call is: by whom, for whom, of which tool, and with what.

    ``authority`` is the SHA-256 of principal, chain and task, None on the agent's own authority;
    ``arguments`` are their SHA-256.
    """

    agent: str
    authority: str | None
    tool: str
    arguments: str


class Place(NamedTuple):
    """The place of a call in a run: what it is, and how many of the same came before it."""

    run: Run
    key: Key
    ordinal: int

    @property
    def site(self) -> CallSite:
        """The place as it is signed."""
        call_id = f"{self.key.tool}:{self.key.arguments[:32]}#{self.ordinal}"
        return CallSite(call_id, self.run.name, self.key.authority)


_NESTED_PLACES: Final[ContextVar[list[Place] | None]] = ContextVar(
    "agentguard_crewai_inside", default=None
)


def nested_places() -> list[Place] | None:
    """Return the places of calls that were completed within the call that runs here, so far."""
    return _NESTED_PLACES.get()


@contextmanager
def collect_places(places: list[Place]) -> Iterator[None]:
    """Collect the places of calls that are completed in this block."""
    token = _NESTED_PLACES.set(places)
    try:
        yield
    finally:
        _NESTED_PLACES.reset(token)


class _Attempt(NamedTuple):
    """An agent's work on a task, as far as it went: the places of the calls completed in it."""

    agent: object
    task: object
    places: list[Place]


_ATTEMPT: Final[ContextVar[_Attempt | None]] = ContextVar("agentguard_crewai_attempt", default=None)


@contextmanager
def attempt(agent: object, task: object | None) -> Iterator[None]:
    """Do an agent's work on a task, None for what is no task's.

    CrewAI tries again what has failed, within the attempt that did (``max_retry_limit``). The
    agent begins anew then: the calls that it had completed are not made again in a run that has a
    name, as in another try of the run.
    """
    outer, failed = nested_places(), _ATTEMPT.get()
    if (
        failed is not None
        and task is not None
        and failed.agent is agent
        and failed.task is task
        and failed.places is outer  # nothing was called in between
    ):
        for place in failed.places:
            place.run.release(place)
        failed.places.clear()
    places: list[Place] = []
    token = _ATTEMPT.set(_Attempt(agent, task, places))
    try:
        with collect_places(places):
            yield
    finally:
        _ATTEMPT.reset(token)
        if outer is not None:
            outer += places


_CURRENT: Final[ContextVar[Run | None]] = ContextVar("agentguard_crewai_run", default=None)


def current_run() -> Run:
    """Return the run that this code is part of: what is part of none is one by itself."""
    return _CURRENT.get() or Run(None)


class resumable(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801  used as a function
    """Name the run whose crews are kicked off in this block, so that it can be begun again.

    After a pause or a crash, run the same block with the same ``name``: calls that were completed
    are not made again, their results are handed out as they were. ``name`` is one run's and no
    other's, such as an order's number; use a block, ``with`` or ``async with``, for one try only.
    Raises ``ConfigError``.
    """

    def __init__(self, name: str) -> None:
        given: object = name
        if not isinstance(given, str) or not given or not _is_text(given):
            raise ConfigError(f"resumable: expected the name of a run, got {given!r}")
        self._name = name
        self._block = ExitStack()

    def __enter__(self) -> None:
        if _CURRENT.get() is not None:
            message = (
                f"the run {self._name!r} is begun inside of another run: leave one of the two out"
            )
            raise ConfigError(message)
        self._block.enter_context(_enter_run(Run(self._name)))

    def __exit__(self, *raised: object) -> None:
        self._block.close()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *raised: object) -> None:
        self._block.close()


@contextmanager
def join_run() -> Iterator[Run]:
    """Be part of the run that is there, or of a new one without a name."""
    present = _CURRENT.get()
    if present is None:
        with _enter_run(Run(None)) as run:
            yield run
        return
    yield present


class Kickoff(NamedTuple):
    """Where a crew that streams was kicked off: in which run, and with what it was lent."""

    run: Run
    delegation_key: object

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Begin its work, which is part of the run.

        Raises ``ConfigError`` where another delegation is in force than at the kick-off, or none.
        """
        if _delegation_key() not in (_ENDED, self.delegation_key):
            message = (
                "a crew that streams works when it is read, and this one was kicked off with "
                "another delegation in force than now: read it in the block that kicked it off, or "
                "in a block of the same stored delegation (guard.resume)"
            )
            raise ConfigError(message, code="crew.elsewhere")
        with _enter_run(self.run):
            yield


def current_kickoff() -> Kickoff:
    """Return where this code is."""
    return Kickoff(current_run(), _delegation_key())


_ENDED: Final = object()
"""In the place of what was lent, where that has ended: each call is refused, and says so."""


def _delegation_key() -> object:
    try:
        delegation = current_delegation()
    except DelegationError:
        return _ENDED
    return None if delegation is None else delegation.key


def read_within(items: Generator[Item], kickoff: Kickoff) -> Iterator[Item]:
    """Go through a stream whose work begins with its first item, as where it was kicked off.

    Whoever closes this closes the stream, which waits for its work to end.
    """
    with closing(items):
        with kickoff.entered():
            first = next(items, None)
        if first is not None:
            yield first
            yield from items


async def aread_within(items: AsyncGenerator[Item], kickoff: Kickoff) -> AsyncIterator[Item]:
    """Go through an async stream; the async twin of ``read_within``."""
    async with aclosing(items):
        with kickoff.entered():
            first = await anext(items, None)
        if first is not None:
            yield first
            async for item in items:
                yield item


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _enter_run(run: Run) -> Iterator[Run]:
    token = _CURRENT.set(run)
    try:
        yield run
    finally:
        _CURRENT.reset(token)
