"""What was revoked, whether all is frozen, and how many calls a delegation still allows.

What is revoked is the ledger's affair (``ledger.py``). The calls under a delegation that allows a
number of them are counted beside it: a byte for each, in a file for each hop. The log counts them
as well, once they are authorised, and the higher number of the two counts: whoever cuts a file or
removes it gives nobody more calls.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.errors import StorageError
from agentguard.storage import files, lock
from agentguard.storage.reentry import ReentryGuard

if TYPE_CHECKING:
    from agentguard.storage.ledger import Ledger

CALLS: Final = "calls"
"""The folder with the counted calls."""

_JTI: Final = re.compile(r"[A-Za-z0-9_-]{8,128}\Z")
_COUNTING: Final = "counting another call"


class FileRevocations:
    """The ``Revocations`` of a state directory; safe from many threads, made anew after a fork."""

    def __init__(self, state: Path, ledger: Ledger) -> None:
        self._folder = state / CALLS
        self._ledger = ledger
        self._reentry = ReentryGuard()

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Look whether there is something new, then in what counts."""
        return self._ledger.refusal(names)

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count a call under each limit, or under none."""
        try:
            with self._reentry.enter(_COUNTING), ExitStack() as held:
                files.make_folder(self._folder)
                counters: dict[str, int] = {}
                for jti, _most in sorted(limits):  # in one order, so that nobody waits in a circle
                    counter = lock.acquire(self._folder / _name(jti), wait=True)
                    held.callback(lock.release, counter)
                    counters[jti] = counter
                made = self._made(counters)
                if any(made[jti] >= most for jti, most in limits):
                    return False
                for jti, counter in counters.items():
                    end = os.lseek(counter, 0, os.SEEK_END)
                    os.write(counter, b"." * (made[jti] + 1 - end))
                    os.fdatasync(counter)
                return True
        except OSError as error:
            message = f"the calls can't be counted in {self._folder} ({error.strerror})"
            raise StorageError(message) from error

    def is_within(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Whether the log has no more calls than the limits allow."""
        calls = self._ledger.read_on().calls
        return all(jti not in calls or calls[jti].calls <= most for jti, most in limits)

    def _made(self, counters: dict[str, int]) -> dict[str, int]:
        """Return how many calls were made under each hop, by its file or by the log."""
        logged = self._ledger.read_on().calls if counters else {}
        return {
            jti: max(os.fstat(counter).st_size, logged[jti].calls if jti in logged else 0)
            for jti, counter in counters.items()
        }


class MemoryRevocations:
    """The ``Revocations`` of a guard in memory: nothing is revoked, and calls are counted."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._reentry = ReentryGuard()

    def refusal(self, names: AbstractSet[str]) -> None:
        """Nobody is refused."""

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count a call under each limit, or under none."""
        with self._reentry.enter(_COUNTING), self._lock:
            if any(self._calls[jti] >= most for jti, most in limits):
                return False
            self._calls.update(jti for jti, _most in limits)
            return True

    def is_within(self, limits: Sequence[tuple[str, int]]) -> bool:  # noqa: ARG002
        """What is counted in memory nobody changes."""
        return True


def _name(jti: str) -> str:
    if not _JTI.match(jti):
        raise StorageError(f"{jti!r} is no id of a hop", code="storage.failed")
    return jti
