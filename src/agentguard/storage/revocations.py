"""Which calls are refused by a revocation, a log-out or a freeze: the ledger knows."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from agentguard.identity.login import LogOut
    from agentguard.store.ledger import Ledger

MOST_SURRENDERED: Final = 65_536
"""The most hops at a time that were given up and have not ended: each call reads them all."""


class FileRevocations:
    """The ``Revocations`` of a state directory; safe from many threads, made anew after a fork."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason with which any of these names is refused; else None."""
        return self._ledger.refusal(names)

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
