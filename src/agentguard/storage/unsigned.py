"""The outcomes in one log's queue that no agent instance has signed yet.

An instance signs an outcome together with its next call. ``log.py`` has the outcome signed alone
where no such call comes within 50 ms, where too many outcomes wait, and when the log is closed.
"""

from __future__ import annotations

from typing import Final

from agentguard.audit.records import Record, UnsignedOutcome
from agentguard.signing import dsse
from agentguard.signing.keys import Signer
from agentguard.storage.flusher import LOGGER

MAX_UNSIGNED: Final = 256
"""Most outcomes that wait, of all instances together."""


class UnsignedOutcomes:
    """Unsigned outcomes in the order in which they came; each method may be called by any thread.

    Each method is one step of a dictionary, which no other thread and no signal can cut in two.
    """

    def __init__(self) -> None:
        self._outcomes: dict[str, UnsignedOutcome] = {}  # by the digest of the statement

    def add(self, outcome: UnsignedOutcome) -> None:
        """Let an outcome wait."""
        self._outcomes[outcome.sha256] = outcome

    def take(self, outcome: UnsignedOutcome) -> bool:
        """Let an outcome wait no longer; False where another thread has taken the outcome."""
        return self._outcomes.pop(outcome.sha256, None) is not None

    def waiting(self) -> list[UnsignedOutcome]:
        """Return all outcomes that wait."""
        return list(self._outcomes.values())

    def excess(self) -> list[UnsignedOutcome]:
        """Return the oldest outcomes if too many wait."""
        return self.waiting()[:-MAX_UNSIGNED] if len(self._outcomes) > MAX_UNSIGNED else []

    def of(self, signer: Signer) -> list[UnsignedOutcome]:
        """Return the oldest outcomes of a signer, as many as fit beside one more statement."""
        if not self._outcomes:
            return []
        mine = [outcome for outcome in self.waiting() if outcome.signer is signer]
        return mine[: dsse.MAX_SUBJECTS - 1]


def sign_alone(outcome: UnsignedOutcome) -> Record | None:
    """Return the entry of an outcome, signed alone; None where the signer fails, which is logged.

    The call of such an outcome stays in doubt.
    """
    try:
        return outcome.signed()
    except Exception:  # noqa: BLE001  a signer may be a service, and any failure of it is logged
        LOGGER.exception("an outcome could not be signed: its call stays in doubt")
        return None
