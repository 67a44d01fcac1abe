"""``ServiceParts``: what the endpoints of the token service use of the guard and the configuration.

The endpoints are functions of these parts and a request. ``open_parts`` makes the parts once.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from typing import Final, NamedTuple

from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.log import AuditLog
from agentguard.delegation.chain import Chain
from agentguard.domain.config import Config
from agentguard.domain.config.service import ServiceConfig
from agentguard.domain.id_jags import IdJags
from agentguard.domain.issuer_keys import open_issuers
from agentguard.domain.logouts import LogOutTokens
from agentguard.errors import ConfigError
from agentguard.flow.ports import Ports
from agentguard.guard.embedded import Embedded
from agentguard.guard.process import Present
from agentguard.identity.trust import TrustDocument
from agentguard.server.tokens import TokenClients
from agentguard.store.proof_store import ProofStore

_MOST: Final = 4096
"""The most chains that are known; the oldest is dropped for a newer one."""


class RecordedChains:
    """Knows which chains this process has put into the log; may be used from any thread.

    A chain stands in the log before whatever names the chain. A chain that is not
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


LOGGER: Final = logging.getLogger("agentguard")

STORE: Final = "service-store.db"
"""The file in the state with the used proofs, and with the chains of tokens that were issued."""

_MOST_CHAINS: Final = 65_536


class ServiceParts(NamedTuple):
    """The configuration, the guard, the clients, the used proofs, and the chains in the log.

    ``logouts`` verifies the log-out tokens of providers; one request at a time has the ``turn`` to
    record a log-out or a surrender. ``id_jags`` verifies the ID-JAGs of providers.
    """

    settings: Config
    config: ServiceConfig
    guard: Embedded
    clients: TokenClients
    store: ProofStore
    logouts: LogOutTokens
    turn: threading.Lock
    chains: RecordedChains
    id_jags: IdJags

    @property
    def ports(self) -> Ports:
        """The log, the clock and the entropy of the guard."""
        return self.guard.runtime.current_ports()

    def present(self) -> Present:
        """Return the time of a request, and the domain with the keys in force.

        One look serves a whole request. Raises ``AgentguardError``.
        """
        return self.guard.runtime.present()

    @property
    def trust(self) -> TrustDocument:
        """The trust document in force, read anew if somebody has rotated the keys."""
        return self.guard.runtime.renewed_domain().trust

    def now(self) -> datetime:
        """Return the time, which is never before the newest entry of the log."""
        return self.ports.now()

    def url(self, path: str) -> str:
        """Return the URL of an endpoint, as others know the service."""
        return self.config.issuer + path


def open_parts(settings: Config, guard: Embedded) -> ServiceParts:
    """Return the parts of the service that ``[service]`` describes.

    ``guard`` is the server's own, and is not closed here. Raises ``ConfigError`` without the table,
    and ``ProofError`` (``proof.unavailable``) where the used proofs can't be kept.
    """
    if settings.service is None:
        raise ConfigError(f"{settings.source}: service: expected a table [service], found none")
    clients = [one for one in settings.client_tables.values() if one.issuer is not None]
    sources = guard.key_sources.after(settings)
    return ServiceParts(
        settings,
        settings.service,
        guard,
        TokenClients(open_issuers(settings, sources), clients),
        ProofStore(settings.state / STORE, max_chains=_MOST_CHAINS),
        LogOutTokens(settings, sources),
        threading.Lock(),
        RecordedChains(),
        IdJags(settings, sources, lambda: guard.delegations.users),
    )
