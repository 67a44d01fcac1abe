"""The trust domain of a guard in memory: its keys and its log end with the process.

``domain.py`` has the domain in a state directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from agentguard.call.invocation import timestamp
from agentguard.domain import config
from agentguard.domain.config import Config
from agentguard.domain.new_keys import announce_keys, new_key, new_trust
from agentguard.errors import ConfigError, StorageError
from agentguard.flow.ports import Clock
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import MemoryEngine
from agentguard.store.store import Store, first_head


@dataclass(frozen=True, slots=True, eq=False)
class MemoryDomain:
    """A ``Domain`` in memory, whose log can be opened once."""

    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    engine: MemoryEngine
    secret: bytes = field(repr=False)
    is_in_memory: ClassVar[bool] = True
    page_keys: ClassVar[None] = None

    def claim(self, *, alone: bool) -> Callable[[], None]:  # noqa: ARG002
        """Claim nothing: no other process has this state."""
        return _nothing

    def open_log(self, now: datetime, clock: Clock | None = None) -> StoreLog:
        """Open the log; raises ``StorageError`` (``storage.closed``) the second time."""
        if self.read().size() > 0:
            message = "a guard in memory does not outlive a fork: make one in this process"
            raise StorageError(message, code="storage.closed")
        keys = tuple(self.trust.keys_for("log"))
        clock = clock or (lambda: max(now, datetime.now(UTC)))
        store = Store(self.engine, self.trust.log, lambda: keys, self.log_key, clock=clock)
        log = StoreLog(store)
        announce_keys(log, self.issuer, self.trust, now)
        return log

    def read(self) -> StoredLog:
        """Return a reader of the log."""
        return StoredLog(self.engine)

    def journal_secret(self) -> bytes:
        """Return what names journalled calls in the log."""
        return self.secret

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
    engine = MemoryEngine(first_head(trust.log, log_key, timestamp(now)))
    return MemoryDomain(trust, issuer, log_key, engine, os.urandom(32))
