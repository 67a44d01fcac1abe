"""Which calls are refused by a revocation, a log-out or a freeze, or by a used-up delegation.

The ledger (``ledger.py``) knows revocations, log-outs and freezes. Calls under a delegation that
allows a number of them are counted here: one byte a call, in one file a hop. The log counts the
same calls, once they are authorised, and the higher of the two numbers counts. So whoever cuts or
removes a file gives nobody more calls.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from agentguard.errors import StorageError
from agentguard.storage import files, lock
from agentguard.storage.owned_lock import OwnedLock

if TYPE_CHECKING:
    from agentguard.identity.login import LogOut
    from agentguard.store.ledger import Ledger

CALLS: Final = "calls"
"""The folder with the counted calls."""

MOST_SURRENDERED: Final = 65_536
"""The most hops at a time that were given up and have not ended: each call reads them all."""

_JTI: Final = re.compile(r"[A-Za-z0-9_-]{8,128}\Z")
COUNTING: Final = "it counted another call"


class FileRevocations:
    """The ``Revocations`` of a state directory; safe from many threads, made anew after a fork."""

    def __init__(self, state: Path, ledger: Ledger) -> None:
        self._folder = state / CALLS
        self._ledger = ledger
        self._counting = OwnedLock(COUNTING)

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason with which any of these names is refused; else None."""
        return self._ledger.refusal(names)

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count a call under each limit, or under none."""
        try:
            with self._counting.held(), ExitStack() as locks:
                files.make_folder(self._folder)
                counters: dict[str, int] = {}
                for jti, _most in sorted(limits):  # in one order, so that nobody waits in a circle
                    counter = lock.acquire(self._folder / _file_name(jti))
                    locks.callback(lock.release, counter)
                    counters[jti] = counter
                counts = self._counts(counters)
                if any(counts[jti] >= most for jti, most in limits):
                    return False
                for jti, counter in counters.items():
                    end = os.lseek(counter, 0, os.SEEK_END)
                    os.write(counter, b"." * (counts[jti] + 1 - end))
                    os.fdatasync(counter)
                return True
        except OSError as error:
            message = f"the calls can't be counted in {self._folder} ({error.strerror})"
            raise StorageError(message) from error

    def is_within(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Whether the log has no more calls than the limits allow."""
        calls = self._ledger.read_on().calls
        return all(jti not in calls or calls[jti].calls <= most for jti, most in limits)

    def has_ended(self, logout: LogOut) -> bool:
        """Whether a log-out is known that ends all that this log-out ends."""
        return self._ledger.restrictions.has_ended(logout)

    def surrender_of(self, jti: str) -> Literal["new", "known", "full"]:
        """Whether a hop is known to be given up; ``full`` from ``MOST_SURRENDERED`` on."""
        surrendered = self._ledger.restrictions.surrendered
        if jti in surrendered:
            return "known"
        return "new" if len(surrendered) < MOST_SURRENDERED else "full"

    def publish(self) -> None:
        """Read the log on, and save what denies calls where every process looks in each call."""
        self._ledger.keep(at_once=True)

    def _counts(self, counters: dict[str, int]) -> dict[str, int]:
        """Return how many calls each hop has, by its file or by the log: the higher number."""
        logged = self._ledger.read_on().calls if counters else {}
        return {
            jti: max(os.fstat(counter).st_size, logged[jti].calls if jti in logged else 0)
            for jti, counter in counters.items()
        }


def _file_name(jti: str) -> str:
    if not _JTI.match(jti):
        raise StorageError(f"{jti!r} is no id of a hop", code="storage.failed")
    return jti
