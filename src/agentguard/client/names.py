"""What this process has named in its session of a server: agents' instances, tools, delegations.

A server that was started anew has forgotten the names. Each name is therefore kept with the
generation of the session (``Link.generation``), and made anew in the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from agentguard.client.link import Link
from agentguard.errors import ServerError

T = TypeVar("T")


class _Kept(NamedTuple, Generic[T]):
    generation: int
    name: T


class Name(Generic[T]):
    """A name in the session, which ``make`` makes where the session does not have the name."""

    def __init__(self, link: Link, make: Callable[[], T]) -> None:
        self._link = link
        self._make = make
        self.forked()
        self._kept: _Kept[T] | None = None

    def __call__(self) -> T:
        """Return the name; raises what ``make`` raises."""
        kept = self._kept
        if kept is not None and kept.generation == self._link.generation:
            return kept.name
        with self._lock:
            kept = self._kept
            if kept is None or kept.generation != self._link.generation:
                # the session may be another one once the name is made: then the name is made again
                generation = self._link.generation
                self._kept = kept = _Kept(generation, self._make())
            return kept.name

    def forked(self) -> None:
        """Renew the lock, in a forked process: a thread that is not here may have held the old one.

        It is an RLock: no call that interrupts this thread waits for it.
        """
        self._lock = threading.RLock()

    def drop(self) -> None:
        """Have the name made anew the next time."""
        self._kept = None

    def forget(self, tell: Callable[[T], None]) -> None:
        """Tell ``tell`` the name, if the present session has it; waits for nobody."""
        kept = self._kept
        if kept is not None and kept.generation == self._link.generation:
            tell(kept.name)


def in_session(ask: Callable[[bool], T], drop: Callable[[], None]) -> T:
    """Return what ``ask`` returns; ask again where the server does not know a name.

    ``ask`` looks its names up each time, and is told whether it is asked again. A server that is
    started anew twice in a row is asked three times; ``drop`` drops the names before the last time.
    """
    for is_again in (False, True):
        try:
            return ask(is_again)
        except ServerError as error:
            if error.code != "server.unknown":
                raise
    drop()
    return ask(True)  # noqa: FBT003
