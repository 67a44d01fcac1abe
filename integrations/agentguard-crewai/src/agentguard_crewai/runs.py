"""A run of a crew: what is paused in it, and the places of its calls, so that it can go on.

A run that has a name (``resumable``) can be begun again, in another process, too. A model does not
repeat itself, so that a call is known again by what it is (who calls which tool with what), and by
how many of the same came before it in the run.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from typing import Final, NamedTuple, NoReturn

from agentguard import ApprovalPending, CallSite, ConfigError


class Paused(BaseException):
    """Stops a crew while a call waits for people; nothing on CrewAI's way out catches it.

    Whoever began the work turns it into the ``ApprovalPending`` that it carries (``agents.py``).
    """

    def __init__(self, pending: ApprovalPending) -> None:
        super().__init__(str(pending))
        self.pending = pending


class Run:
    """One try of a run; ``name`` None for one that can't be begun again.

    ``pending`` is what it waits for once it has paused: nothing runs in it any more.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.pending: ApprovalPending | None = None
        self._made: Counter[tuple[str, str, str]] = Counter()
        self._free: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
        self._lock = threading.Lock()

    def pause(self, pending: ApprovalPending) -> NoReturn:
        """Stop all that is part of this run; raises ``Paused``."""
        self.pending = pending
        raise Paused(pending)

    def require_going(self) -> None:
        """Raise ``Paused`` where the run has paused."""
        if self.pending is not None:
            raise Paused(self.pending)

    def take(self, agent: str, tool: str, arguments: str) -> Place:
        """Return the place of the next call that is this one; ``arguments`` is their SHA-256."""
        key = (agent, tool, arguments)
        with self._lock:
            if self._free[key]:
                return Place(self, key, heappop(self._free[key]))
            self._made[key] += 1
            return Place(self, key, self._made[key])

    def give_back(self, key: tuple[str, str, str], ordinal: int) -> None:
        """Let another call have the place of one that did not run, or has failed."""
        with self._lock:
            heappush(self._free[key], ordinal)


class Place(NamedTuple):
    """The place of a call in a run: by whom what is called, and how many of it came before."""

    run: Run
    key: tuple[str, str, str]
    ordinal: int

    @property
    def site(self) -> CallSite:
        """The place as it is signed."""
        _agent, tool, arguments = self.key
        return CallSite(f"{tool}:{arguments[:32]}#{self.ordinal}", self.run.name)

    def free(self) -> None:
        """Say that the call was not completed, and would be made at this place again."""
        self.run.give_back(self.key, self.ordinal)


_CURRENT: Final[ContextVar[Run | None]] = ContextVar("agentguard_crewai_run", default=None)


def current() -> Run:
    """Return the run that this code is part of: what is part of none is one by itself."""
    return _CURRENT.get() or Run(None)


@contextmanager
def resumable(name: str) -> Iterator[None]:
    """Name the run whose crews are kicked off in this block, so that it can be begun again.

    After a pause or a crash, run the same block with the same ``name``: calls that were completed
    are not made again, their results are handed out as they were. ``name`` is one run's and no
    other's, such as an order's number; use a block for one try only. Raises ``ConfigError``.
    """
    given: object = name
    if not isinstance(given, str) or not given or not _is_text(given):
        raise ConfigError(f"resumable: expected the name of a run, got {given!r}")
    if _CURRENT.get() is not None:
        raise ConfigError(f"resumable: {name!r} is begun inside of another run")
    with _begun(Run(name)):
        yield


@contextmanager
def joined(begun: Run | None = None) -> Iterator[Run]:
    """Be part of the run that is there, or else of ``begun``, or of a new one without a name."""
    present = _CURRENT.get()
    if present is None:
        with _begun(begun or Run(None)) as run:
            yield run
        return
    yield present


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _begun(run: Run) -> Iterator[Run]:
    token = _CURRENT.set(run)
    try:
        yield run
    finally:
        _CURRENT.reset(token)
