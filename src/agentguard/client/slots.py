"""``Slots``: how many connections a process uses at a time; whoever comes later waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice


class Slots:
    """So many places for connections in use. The methods may be called from any thread.

    A signal handler may need a place at any step of this thread, or raise ``KeyboardInterrupt``
    there. Taking a place and giving it back are therefore one step each.
    """

    def __init__(self, number: int) -> None:
        self._free = list(range(number))
        self._changed = threading.Condition(threading.RLock())

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place until the context ends; wait for a place where none is free."""
        mine: list[int] = []
        try:
            while not mine:
                self._take(mine)
                if not mine:
                    self.wait(1)  # a handler may have taken another thread's notice
            yield
        finally:
            self._free.extend(mine)
            with self._changed:
                self._changed.notify_all()

    def _take(self, mine: list[int]) -> None:
        """Move a place, if one is free: no interrupt comes between its two ends."""
        with suppress(IndexError):
            mine.extend(islice(iter(self._free.pop, None), 1))

    def wait(self, seconds: float) -> None:
        """Wait until a place is given back, for so many seconds at most."""
        with self._changed:
            self._changed.wait(seconds)
