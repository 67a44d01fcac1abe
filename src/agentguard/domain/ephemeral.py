"""The protocol of a trust domain, and the domain in memory that is gone with its process.

``domain.py`` has the domain in a state directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentguard.approvals.inbox import Store
from agentguard.approvals.store import Limits
from agentguard.audit import records
from agentguard.audit.log import LogReader
from agentguard.audit.registry import seal_registry
from agentguard.call.invocation import timestamp
from agentguard.call.journal import Journal, RunStore
from agentguard.domain import config
from agentguard.domain.config import Config
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.revocation import Revocations
from agentguard.identity.trust import TrustDocument, TrustedKey, seconds
from agentguard.signing.keys import Ed25519Signer, Signer
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


class Domain(Protocol):
    """A trust domain taken up: its keys in force, its trust document, and its log."""

    @property
    def trust(self) -> TrustDocument:
        """The trust document, in which the two keys are in force."""

    @property
    def issuer(self) -> Signer:
        """The issuer's key."""

    @property
    def log_key(self) -> Signer:
        """The log's key."""

    def ledger(self, parent: Inheritance | None = None) -> Ledger | None:
        """What the log says that decides calls, for one process; None for a log in memory.

        What is made for one line is given the same one. A fork hands over what its ``parent`` knew.
        """

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:
        """Take a shard of the log to write. Raises ``StorageError`` or ``VerificationError``."""

    def read(self) -> LogReader:
        """Open the log to read; raises ``StorageError``."""

    def revocations(self, ledger: Ledger | None = None) -> Revocations:
        """What was revoked, with what the log says of it; raises as ``lease`` does."""

    def approvals(self, limits: Limits, ledger: Ledger | None = None) -> Store:
        """Where requests for approvals wait, used approvals among them; raises ``StorageError``."""

    def journal(self, ledger: Ledger | None = None) -> Journal:
        """What became of calls that may be made again."""

    def runs(self) -> RunStore:
        """What adapters keep of runs that go on later."""

    def renewed(self) -> Domain | None:
        """Take the domain up again if its keys were rotated or revoked; None if not."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryDomain:
    """The ``Domain`` that is gone with its process; its log can be leased once."""

    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    backend: MemoryBackend

    def ledger(self, parent: Inheritance | None = None) -> None:
        """A log in memory can be changed by nobody but its process."""

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:  # noqa: ARG002
        """Lease the one shard; raises ``StorageError`` (``storage.closed``) the second time."""
        if self.backend.read_head().checkpoint.size > 0:
            message = "a guard in memory does not outlive a fork: make one in this process"
            raise StorageError(message, code="storage.closed")
        log = ShardLog(self.backend, self.log_key)
        log.append(
            records.shard(
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
        """Return the log as it is now."""
        return self.backend.copied()

    def revocations(self, ledger: Ledger | None = None) -> MemoryRevocations:  # noqa: ARG002
        """Nothing is revoked in memory; calls are counted."""
        return MemoryRevocations()

    def approvals(self, limits: Limits, ledger: Ledger | None = None) -> MemoryApprovals:  # noqa: ARG002
        """Requests in memory."""
        return MemoryApprovals(limits)

    def journal(self, ledger: Ledger | None = None) -> MemoryJournal:  # noqa: ARG002
        """A journal in memory."""
        return MemoryJournal()

    def runs(self) -> MemoryRuns:
        """Runs in memory."""
        return MemoryRuns()

    def renewed(self) -> None:
        """Nobody can rotate its keys."""


def settings(tables: object) -> Config:
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


def domain(trust_domain: str, *, now: datetime) -> MemoryDomain:
    """Make a domain in memory."""
    issuer, log_key = new_key(), new_key()
    trust = trust_of(trust_domain, now, issuer=issuer, log=log_key)
    listed = seal_registry(issuer, trust, [0], at=timestamp(now))
    backend = MemoryBackend(trust.origin(0), log_key, registry=listed)
    return MemoryDomain(trust, issuer, log_key, backend)


def new_key() -> Ed25519Signer:
    """Make a key that did not exist before."""
    return Ed25519Signer.from_seed(os.urandom(32))


def trust_of(trust_domain: str, now: datetime, **signers: Signer) -> TrustDocument:
    """Return the trust document of a new domain, in which the signers' keys are in force."""
    since = seconds(now)
    keys = tuple(TrustedKey(use, s.public_key, since) for use, s in signers.items())  # type: ignore[arg-type]
    return TrustDocument(trust_domain, f"{trust_domain}/log/{os.urandom(16).hex()}", keys)


def announce_keys(log: ShardLog, issuer: Signer, trust: TrustDocument, now: datetime) -> None:
    """Put the keys of a trust document into the log."""
    for trusted in trust.keys:
        log.enqueue(records.key(issuer, trusted.as_json(), at=timestamp(now)))
    log.flush()
