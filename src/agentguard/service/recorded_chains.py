"""``RecordedChains``: which chains of delegation this process has put into the log."""

from __future__ import annotations

import threading
from typing import Final

from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.log import AuditLog
from agentguard.delegation.chain import Chain

_MOST: Final = 4096
"""The most chains that are known; the oldest is dropped for a newer one."""


class RecordedChains:
    """Knows which chains this process has put into the log; may be used from any thread.

    A chain stands in the shard of the log before whatever names the chain. A chain that is not
    known any more is put into the log once more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[str, None] = {}

    def record(self, log: AuditLog, chain: Chain, at: str) -> None:
        """Make the entry of a chain durable, unless the log has the chain; ``at`` is RFC 3339.

        Raises ``StorageError``.
        """
        if chain.sha256 in self._digests:
            return
        log.append(DelegationEntry.new(chain, at=at))
        with self._lock:
            while len(self._digests) >= _MOST:
                del self._digests[next(iter(self._digests))]
            self._digests[chain.sha256] = None
