"""The protocol ``Domain``: a trust domain that a process acts in.

``domain.py`` has the domain in a state directory, ``memory.py`` the domain in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from agentguard.audit.log import LogReader
from agentguard.flow.ports import Clock
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.store.log import StoreLog
from agentguard.store.sealed_pages import Keys


class Domain(Protocol):
    """A trust domain that a process acts in: the keys in force, the trust document and the log."""

    @property
    def trust(self) -> TrustDocument:
        """The trust document, in which the two keys are in force."""

    @property
    def issuer(self) -> Signer:
        """The issuer's key."""

    @property
    def log_key(self) -> Signer:
        """The log's key."""

    @property
    def is_in_memory(self) -> bool:
        """Whether the log and all stores are in memory, where nobody waits for a disk."""

    def claim(self, *, alone: bool) -> Callable[[], None]:
        """Claim the state for this process, ``alone`` or beside others; return what gives it back.

        A guard server has a state alone. Raises ``StorageError`` (``storage.served``,
        ``storage.used``) where another process has the state alone, or uses the state.
        """

    def open_log(self, now: datetime, clock: Clock | None = None) -> StoreLog:
        """Open the log to write; ``clock`` is this machine's by default.

        Raises ``StorageError`` or ``VerificationError``.
        """

    def read(self) -> LogReader:
        """Open the log to read; raises ``StorageError``."""

    @property
    def page_keys(self) -> Keys | None:
        """The log's key, and what returns the trust document as it is by then.

        None where nobody but this process can write.
        """

    def journal_secret(self) -> bytes:
        """Return what names journalled calls in the log (``LoggedJournal``).

        Raises ``AgentguardError``.
        """

    def renewed(self) -> Domain | None:
        """Return the domain with the present keys if they were rotated or revoked, else None."""
