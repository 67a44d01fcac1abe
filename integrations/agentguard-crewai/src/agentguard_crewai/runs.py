"""A run of crews: its pause, and the places of its calls, by which a later try finds results.

A run that has a name (``resumable``) can be tried again, also in another process. A model does not
repeat its steps exactly. So a call is identified by agent, authority, tool and arguments (``Key``),
and by the number of equal calls before it in the run.
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
from agentguard.adapters import CallSite, assigned

Item = TypeVar("Item")


class Paused(BaseException):
    """Stops a crew while a call waits for people; CrewAI catches no ``BaseException``.

    ``agents.py`` raises the ``ApprovalPending`` in its place to the caller of the kickoff.
    """

    def __init__(self, pending: ApprovalPending) -> None:
        super().__init__(str(pending))
        self.pending = pending


class Run:
    """One try of a run; ``name`` is None for a run that can't be tried again.

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
        """Pause the run: raise ``Paused`` here, and at each later call of the run."""
        self.pending = pending
        raise Paused(pending)

    def require_running(self) -> None:
        """Raise ``Paused`` where the run has paused."""
        if self.pending is not None:
            raise Paused(self.pending)

    def claim(self, key: Key) -> Place:
        """Return the next free place of this call.

        The nested calls of an incomplete call at that place give their places back.
        """
        with self._lock:
            ordinals = self._ordinals[key]
            ordinal = next(n for n in itertools.count(1) if n not in ordinals)
            ordinals.add(ordinal)
            for within in self._nested.pop((key, ordinal), ()):
                self._ordinals[within.key].discard(within.ordinal)
        return Place(self, key, ordinal)

    def reclaim(self, places: Iterable[Place]) -> None:
        """Claim the places of the nested calls of a replayed call."""
        with self._lock:
            for place in places:
                self._ordinals[place.key].add(place.ordinal)

    def release(self, place: Place, within: Sequence[Place] = ()) -> None:
        """Free the place of a call that did not run, failed or is incomplete.

        The completed nested calls (``within``) keep their places until the call is made again.
        """
        with self._lock:
            self._ordinals[place.key].discard(place.ordinal)
            if within:
                self._nested[place.key, place.ordinal] = [*within]


class Key(NamedTuple):
    """What identifies a call: the agent, the authority, the tool and the arguments.

    ``authority`` is the SHA-256 of principal, chain and task, None on the agent's own authority;
    ``arguments`` are their SHA-256.
    """

    agent: str
    authority: str | None
    tool: str
    arguments: str


class Place(NamedTuple):
    """The place of a call in a run: its key, and its number among equal calls, from 1."""

    run: Run
    key: Key
    ordinal: int

    @property
    def site(self) -> CallSite:
        """The signed form of the place."""
        call_id = f"{self.key.tool}:{self.key.arguments[:32]}#{self.ordinal}"
        return CallSite(call_id, self.run.name, self.key.authority)


_NESTED_PLACES: Final[ContextVar[list[Place] | None]] = ContextVar(
    "agentguard_crewai_inside", default=None
)


def nested_places() -> list[Place] | None:
    """Return the places of the calls completed so far within the current call."""
    return _NESTED_PLACES.get()


def collect_places(places: list[Place]) -> AbstractContextManager[None]:
    """Collect the places of calls that are completed in this block."""
    return assigned(_NESTED_PLACES, places)


class _Attempt(NamedTuple):
    """An agent's attempt at a task, with the places of the calls completed in the attempt."""

    agent: object
    task: object
    places: list[Place]


_ATTEMPT: Final[ContextVar[_Attempt | None]] = ContextVar("agentguard_crewai_attempt", default=None)


@contextmanager
def attempt(agent: object, task: object | None) -> Iterator[None]:
    """Run an agent's attempt at a task; ``task`` is None for work without a task.

    CrewAI retries a failed attempt within that attempt (``max_retry_limit``). The retry frees the
    places of the failed attempt: in a named run its completed calls are replayed and not repeated.
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
    try:
        with assigned(_ATTEMPT, _Attempt(agent, task, places)), collect_places(places):
            yield
    finally:
        if outer is not None:
            outer += places


_CURRENT: Final[ContextVar[Run | None]] = ContextVar("agentguard_crewai_run", default=None)


def current_run() -> Run:
    """Return the current run; outside of any run, a new run without a name."""
    return _CURRENT.get() or Run(None)


class resumable(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801  used as a function
    """Name the run of the crews that are kicked off in this block, so that the run can resume.

    After a pause or a crash, run the same block with the same ``name``: completed calls are not
    repeated, and their stored results are returned. ``name`` belongs to one run alone, such as the
    number of an order. Use a block (``with`` or ``async with``) for one try only. Raises
    ``ConfigError``.
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
        self._block.enter_context(assigned(_CURRENT, Run(self._name)))

    def __exit__(self, *raised: object) -> None:
        self._block.close()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *raised: object) -> None:
        self._block.close()


@contextmanager
def join_run() -> Iterator[Run]:
    """Run the block as part of the current run, or else of a new run without a name."""
    run = current_run()
    with assigned(_CURRENT, run):
        yield run


class Kickoff(NamedTuple):
    """The run and the delegation in which a streaming crew was kicked off."""

    run: Run
    delegation_key: object

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block as part of the kickoff's run.

        Raises ``ConfigError`` where the delegation in force differs from the kickoff's.
        """
        if _delegation_key() not in (_ENDED, self.delegation_key):
            message = (
                "a crew that streams works when it is read, and this one was kicked off with "
                "another delegation in force than now: read it in the block that kicked it off, or "
                "in a block of the same stored delegation (guard.resume)"
            )
            raise ConfigError(message, code="crew.elsewhere")
        with assigned(_CURRENT, self.run):
            yield


def current_kickoff() -> Kickoff:
    """Return the current run and delegation."""
    return Kickoff(current_run(), _delegation_key())


_ENDED: Final = object()
"""The key of a delegation that has ended; each call is refused with that reason."""


def _delegation_key() -> object:
    try:
        delegation = current_delegation()
    except DelegationError:
        return _ENDED
    return None if delegation is None else delegation.key


def read_within(items: Generator[Item], kickoff: Kickoff) -> Iterator[Item]:
    """Yield the items of a stream, whose work begins in the run and delegation of the kickoff.

    Closing this generator closes the stream, which waits for its work to end.
    """
    with closing(items):
        with kickoff.entered():
            first = next(items, None)
        if first is not None:
            yield first
            yield from items


async def aread_within(items: AsyncGenerator[Item], kickoff: Kickoff) -> AsyncIterator[Item]:
    """Yield the items of an async stream; the async twin of ``read_within``."""
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
