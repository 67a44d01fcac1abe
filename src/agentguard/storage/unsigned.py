"""The outcomes in one log's queue that no agent instance has signed yet.

An instance signs an outcome together with its next call. ``log.py`` has the outcome signed alone
where no such call comes within 50 ms, where too many outcomes wait, and when the log is closed.
"""

from __future__ import annotations

from typing import Final

from agentguard.audit.entry import Record
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.signing import dsse
from agentguard.signing.keys import Signer
from agentguard.storage.flusher import LOGGER

MAX_UNSIGNED: Final = 256
"""Most outcomes that wait, of all instances together."""


class UnsignedOutcomes(dict[str, UnsignedOutcome]):
    """The outcomes that wait, by the digest of the statement, oldest first.

    Any thread may read. A change is a statement of ``log.py`` that calls no function: an interrupt
    comes before the change or after it.
    """

    def waiting(self) -> list[UnsignedOutcome]:
        """Return all outcomes that wait."""
        return list(self.values())

    def excess(self) -> list[UnsignedOutcome]:
        """Return the oldest outcomes if too many wait."""
        return self.waiting()[:-MAX_UNSIGNED] if len(self) > MAX_UNSIGNED else []

    def of(self, signer: Signer) -> list[UnsignedOutcome]:
        """Return the oldest outcomes of a signer, as many as fit beside one more statement."""
        if not self:
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
