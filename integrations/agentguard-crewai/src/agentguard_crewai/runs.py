"""A run of a crew: what is paused in it, and the places of its calls, so that it can go on.

A run that has a name (``resumable``) can be begun again, in another process, too. A model does not
repeat itself, so that a call is known again by what it is (who calls which tool with what), and by
how many of the same came before it in the run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NoReturn

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
        self._lock = threading.Lock()

    def pause(self, pending: ApprovalPending) -> NoReturn:
        """Stop all that is part of this run; raises ``Paused``."""
        self.pending = pending
        raise Paused(pending)

    def require_going(self) -> None:
        """Raise ``Paused`` where the run has paused."""
        if self.pending is not None:
            raise Paused(self.pending)

    def site(self, agent: str, tool: str, arguments: str) -> CallSite:
        """Return the place of the next call that is this one; ``arguments`` is their SHA-256."""
        key = (agent, tool, arguments)
        with self._lock:
            self._made[key] += 1
            ordinal = self._made[key]
        return CallSite(f"{tool}:{arguments[:32]}#{ordinal}", self.name)


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
    if not isinstance(given, str) or not given:
        raise ConfigError(f"resumable: expected the name of a run, got {given!r}")
    if _CURRENT.get() is not None:
        raise ConfigError(f"resumable: {name!r} is begun inside of another run")
    with _begun(Run(name)):
        yield


@contextmanager
def joined() -> Iterator[Run]:
    """Be part of the run that is there, or of a new one without a name; raises ``ConfigError``."""
    present = _CURRENT.get()
    if present is None:
        with _begun(Run(None)) as run:
            yield run
        return
    yield present


@contextmanager
def _begun(run: Run) -> Iterator[Run]:
    token = _CURRENT.set(run)
    try:
        yield run
    finally:
        _CURRENT.reset(token)
