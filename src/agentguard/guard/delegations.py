"""``Delegations``: the delegations that a guard begins, and those that it takes up again.

A delegation as an application holds it stands in ``delegation/handle.py``, its chain in
``delegation/chain.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta

from agentguard.delegation import chain_issuance, verification
from agentguard.delegation import terms as given_terms
from agentguard.delegation.chain import Chain
from agentguard.delegation.chain_issuance import Terms
from agentguard.delegation.handle import Delegation, Holder
from agentguard.domain.config import Config
from agentguard.domain.config.spelling import ScopeSpelling
from agentguard.errors import DecodeError, DelegationError
from agentguard.guard import process
from agentguard.guard.process import Runtime
from agentguard.identity.principal import require_principal
from agentguard.identity.revocation import require_unrevoked
from agentguard.identity.trust import seconds


class Delegations:
    """Signs the first hop of a chain with the issuer's key, and verifies stored chains."""

    def __init__(self, settings: Config, runtime: Runtime, scopes: ScopeSpelling) -> None:
        self._settings = settings
        self._scopes = scopes
        self._runtime = runtime

    def begin(
        self,
        subject: str,
        *,
        scope: Iterable[str] | None,
        via: str | None,
        task_id: str | None,
        expires_in: timedelta | int,
        max_depth: int,
        max_calls: int | None,
        audience: Iterable[str],
    ) -> Delegation:
        """Have ``subject`` lend ``scope`` (``Guard.delegate``); raises ``DelegationError``."""
        terms = Terms(
            principal=require_principal(subject, "principal", DelegationError),
            scope=self._settings.delegable_scope(subject, scope, self._runtime.directory.principal),
            via=via,
            task_id=task_id,
            audience=given_terms.names(audience),
            expires_in=given_terms.lifetime(expires_in),
            max_depth=max_depth,
            max_calls=max_calls,
        )
        self._scopes.delegate(subject, terms.scope)
        domain = self._runtime.renewed_domain()
        now, jti = seconds(process.clock()), os.urandom(16).hex()
        trust_domain = domain.trust.trust_domain
        return self._handle(
            chain_issuance.begin(domain.issuer, trust_domain, terms, now=now, jti=jti)
        )

    def resume(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote; raises as ``Guard.resume`` does."""
        delegation = self.take_up(stored)
        revocations = self._runtime.current_ports().revocations
        require_unrevoked(revocations, delegation.chain.names)
        return delegation

    def take_up(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote, revoked or not; each call asks for that anew.

        Raises as ``Guard.resume`` does, but for a revocation or a freeze.
        """
        given: object = stored
        if not isinstance(given, bytes | bytearray | str):
            message = f"expected what Delegation.dumps wrote, got a {type(given).__name__}"
            raise DecodeError(message, code="chain.malformed")
        domain = self._runtime.renewed_domain()
        chain = verification.loads(stored, domain.trust, at=seconds(process.clock()))
        if not chain.leaf.is_asserted:
            message = "an agent of another process holds this chain: store what guard.delegate made"
            raise DelegationError(message, code="delegation.holder")
        return self._handle(chain)

    def _handle(self, chain: Chain) -> Delegation:
        def holder(_now: datetime) -> Holder:
            return Holder(self._runtime.renewed_domain().issuer, None)

        return Delegation(chain, holder, chain.leaf.scope)
