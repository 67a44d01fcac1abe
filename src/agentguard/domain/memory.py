"""The trust domain of a guard in memory: its keys and its log end with the process.

``domain.py`` has the domain in a state directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from agentguard.approvals.store import Limits, Recorder
from agentguard.audit.kinds.announcements import ShardEntry
from agentguard.audit.registry import seal_registry
from agentguard.call.invocation import timestamp
from agentguard.domain import config
from agentguard.domain.config import Config
from agentguard.domain.new_keys import announce_keys, new_key, new_trust
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage.log import ShardLog
from agentguard.storage.memory import MemoryBackend
from agentguard.storage.memory_state import (
    MemoryApprovals,
    MemoryJournal,
    MemoryRevocations,
    MemoryRuns,
)

if TYPE_CHECKING:
    from agentguard.storage.ledger import Inheritance, Ledger


@dataclass(frozen=True, slots=True, eq=False)
class MemoryDomain:
    """A ``Domain`` in memory. The log has one shard, which can be leased once."""

    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    backend: MemoryBackend
    is_in_memory: ClassVar[bool] = True

    def claim(self, *, alone: bool) -> Callable[[], None]:  # noqa: ARG002
        """Claim nothing: no other process has this state."""
        return _nothing

    def ledger(self, parent: Inheritance | None = None) -> None:
        """Return None: nobody but this process can change a log in memory."""

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:  # noqa: ARG002
        """Lease the one shard; raises ``StorageError`` (``storage.closed``) the second time."""
        if self.backend.read_head().checkpoint.size > 0:
            message = "a guard in memory does not outlive a fork: make one in this process"
            raise StorageError(message, code="storage.closed")
        log = ShardLog(self.backend, self.log_key)
        log.append(
            ShardEntry.new(
                self.issuer,
                self.log_key.public_key,
                trust_domain=self.trust.trust_domain,
                origin=self.trust.origin(0),
                number=0,
                heads=(),
                at=timestamp(now),
            )
        )
        announce_keys(log, self.issuer, self.trust, now)
        return log

    def read(self) -> MemoryBackend:
        """Return a copy of the log as it is now."""
        return self.backend.copied()

    def revocations(self, ledger: Ledger | None = None) -> MemoryRevocations:  # noqa: ARG002
        """Return revocations without a revoked name, which count calls."""
        return MemoryRevocations()

    def approvals(
        self,
        limits: Limits,
        ledger: Ledger | None = None,  # noqa: ARG002
        record: Recorder | None = None,
    ) -> MemoryApprovals:
        """Return a new store of requests, in memory."""
        return MemoryApprovals(limits, record)

    def journal(self, ledger: Ledger | None = None) -> MemoryJournal:  # noqa: ARG002
        """Return a new journal, in memory."""
        return MemoryJournal()

    def runs(self) -> MemoryRuns:
        """Return a new store of runs, in memory."""
        return MemoryRuns()

    def renewed(self) -> None:
        """Return None: nobody can rotate the keys of a domain in memory."""


def _nothing() -> None:
    """Give nothing back."""


def read_settings(tables: object) -> Config:
    """Read the tables of an agentguard.toml for a guard in memory; raises ``ConfigError``."""
    if not isinstance(tables, Mapping):
        message = (
            f"config: expected the tables of an agentguard.toml as a dict, got {tables!r}: a file "
            "is opened with Guard.open"
        )
        raise ConfigError(message)
    for durable in ("state", "anchor", "keys", "policy"):
        if durable in tables:
            message = f"an ephemeral guard has no {durable}: pass the policy itself, or Guard.open"
            raise ConfigError(message)
    return config.parse(tables, source="config", base=Path.cwd())


def new_domain(trust_domain: str, *, now: datetime) -> MemoryDomain:
    """Make a domain in memory, with new keys and an empty log."""
    issuer, log_key = new_key(), new_key()
    trust = new_trust(trust_domain, now, {"issuer": issuer, "log": log_key})
    listed = seal_registry(issuer, trust, [0], at=timestamp(now))
    backend = MemoryBackend(trust.origin(0), log_key, registry=listed)
    return MemoryDomain(trust, issuer, log_key, backend)
