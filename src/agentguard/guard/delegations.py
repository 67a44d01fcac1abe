"""``Delegations``: the delegations that a guard begins, and those that it takes up again.

A delegation as an application holds it stands in ``delegation/handle.py``, its chain in
``delegation/chain.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agentguard.delegation import chain_issuance, verification
from agentguard.delegation import terms as given_terms
from agentguard.delegation.chain import Chain
from agentguard.delegation.chain_issuance import Terms
from agentguard.delegation.claim import refusing
from agentguard.delegation.handle import Delegation, Holder
from agentguard.delegation.terms import Lender
from agentguard.domain.config import Config
from agentguard.domain.config.agents import PrincipalConfig
from agentguard.errors import DecodeError, DelegationError, VerificationError
from agentguard.guard import process
from agentguard.guard.process import Present, Runtime
from agentguard.identity.revocation import require_unrevoked
from agentguard.identity.trust import seconds
from agentguard.signing.canonical import is_integer
from agentguard.spelling import ScopeSpelling

if TYPE_CHECKING:
    from agentguard.domain.users import User, UserTokens
    from agentguard.domain.workloads import Workload, WorkloadTokens


class Delegations:
    """Signs the first hop of a chain with the issuer's key, and verifies stored chains.

    ``users`` is None where no issuer of the configuration knows users, and ``workloads`` where none
    knows services.
    """

    def __init__(
        self,
        settings: Config,
        runtime: Runtime,
        scopes: ScopeSpelling,
        users: UserTokens | None,
        workloads: WorkloadTokens | None,
    ) -> None:
        self._settings = settings
        self.users = users
        self._workloads = workloads
        self._scopes = scopes
        self._runtime = runtime

    def begin(  # noqa: PLR0913  the terms of a delegation
        self,
        lender: Lender | User,
        *,
        scope: Iterable[str] | None,
        via: str | None,
        task_id: str | None,
        expires_in: timedelta | int,
        max_depth: int,
        max_calls: int | None,
        audience: Iterable[str] | None,
        present: Present | None = None,
    ) -> Delegation:
        """Have a principal lend ``scope``; raises as ``Guard.delegate`` does.

        ``lender`` may be a user whose token the caller has verified. ``present`` is the time and
        the domain of a caller who has just looked at the keys; None for a look of this method.
        """
        now = seconds(process.clock()) if present is None else present.at
        principal, user = self._principal(lender, now)
        service = self._service(lender, via)
        self._settings.require_assurance(principal, "application" if user is None else "oidc")
        terms = Terms(
            principal=principal,
            scope=self._settings.delegable_scope(principal, scope, self._rights_of(user)),
            via=via if service is None else service.name,
            task_id=task_id,
            audience=given_terms.names(audience),
            expires_in=given_terms.lifetime(expires_in),
            max_depth=max_depth,
            max_calls=max_calls,
            via_token=None if service is None else service.token,
        )
        if user is not None:
            terms = _with_token(terms, user, now)
        self._scopes.delegate(principal, terms.scope)
        domain = self._runtime.renewed_domain() if present is None else present.domain
        jti = os.urandom(16).hex()
        trust_domain = domain.trust.trust_domain
        return self._handle(
            chain_issuance.begin(domain.issuer, trust_domain, terms, now=now, jti=jti)
        )

    def _principal(self, lender: Lender | User, now: int) -> tuple[str, User | None]:
        """Return who lends, and the user where the principal came with a token."""
        if isinstance(lender, Lender):
            lender.check()
            if lender.token is None:
                return str(lender.name), None
            user = self._verified(lender, lender.token, now)
        else:
            user = lender
        require_unrevoked(self._runtime.current_ports().log, user.login.names)
        return user.principal, user

    def _verified(self, lender: Lender, token: str, now: int) -> User:
        """Return who came with a token."""
        if self.users is None:
            message = "no issuer knows users here: describe them in [issuers.NAME.users]"
            raise VerificationError(message, code="jwt.issuer")
        user = self.users.verify(token, now=now, actors=lender.actors)
        if lender.name not in (None, user.principal):
            message = f"the token is of {user.principal}, and not of {lender.name}"
            raise DelegationError(message, code="principal.assurance")
        return user

    def _service(self, lender: Lender | User, via: str | None) -> Workload | None:
        """Return which service came with a token, None for a service without one."""
        if not isinstance(lender, Lender) or lender.via_token is None:
            return None
        if self._workloads is None:
            message = "no issuer knows services here: describe them in services of [issuers.NAME]"
            raise VerificationError(message, code="jwt.issuer")
        service = self._workloads.verify(lender.via_token)
        if via not in (None, service.name):
            message = f"the token is of {service.name}, and not of {via}"
            raise DelegationError(message, code="principal.assurance")
        return service

    def _rights_of(self, user: User | None) -> Callable[[str], PrincipalConfig | None] | None:
        """Return the look-up of what a principal may lend; None where nothing limits that."""
        rights_of: Callable[[str], PrincipalConfig | None] | None
        rights_of = (
            self._runtime.directory.principal if self._settings.principals is not None else None
        )
        if user is None:
            return rights_of
        if user.rights is not None:
            rights_of = _always(user.rights)
        return rights_of if user.limit is None else _limited(rights_of, user.limit)

    def roles_of(self, chain: Chain) -> Sequence[str]:
        """Return the roles of a chain's principal for the policy's input.

        They are the token's where the issuer of the token has a claim for roles, and else those of
        ``[principals]``. Raises ``DelegationError``: ``principal.assurance`` for a chain of another
        guard in this process that took an application's word, and ``principal.failed``.
        """
        self._settings.require_assurance(chain.principal, chain.root.assurance)
        login = chain.root.subject_token
        if login is not None and (login.roles or self._gives_roles(login.iss)):
            return login.roles
        return self._runtime.directory.roles(chain.principal)

    def _gives_roles(self, iss: str) -> bool:
        """Whether tokens with this ``iss`` say the roles of users."""
        issuers = self._settings.issuers.values()
        return any(
            one.rule.issuer == iss and one.users is not None and bool(one.users.roles)
            for one in issuers
        )

    def resume(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote; raises as ``Guard.resume`` does."""
        delegation = self.take_up(stored)
        log = self._runtime.current_ports().log
        with refusing(stored):
            require_unrevoked(log, delegation.chain.names)
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
        with refusing(stored):
            chain = verification.loads(stored, domain.trust, at=seconds(process.clock()))
            self._settings.require_assurance(chain.principal, chain.root.assurance)
            if not chain.leaf.is_asserted:
                message = (
                    "an agent of another process holds this chain: store what guard.delegate made"
                )
                raise DelegationError(message, code="delegation.holder")
        return self._handle(chain)

    def _handle(self, chain: Chain) -> Delegation:
        def holder(_now: datetime) -> Holder:
            return Holder(self._runtime.renewed_domain().issuer, None)

        return Delegation(chain, holder, chain.leaf.scope)


def _always(rights: PrincipalConfig) -> Callable[[str], PrincipalConfig | None]:
    return lambda _principal: rights


def _limited(
    rights_of: Callable[[str], PrincipalConfig | None] | None, limit: frozenset[str]
) -> Callable[[str], PrincipalConfig | None]:
    """Return a look-up of what a principal may lend at the most, within ``limit``.

    Without ``rights_of``, the limit alone counts.
    """

    def look_up(principal: str) -> PrincipalConfig | None:
        if rights_of is None:
            return PrincipalConfig((), limit)
        rights = rights_of(principal)
        return None if rights is None else replace(rights, scope=rights.scope & limit)

    return look_up


def _with_token(terms: Terms, user: User, now: int) -> Terms:
    """Return the terms with the token, and an end that is no later than the token allows."""
    longest = user.ends_at - now
    is_longer = is_integer(terms.expires_in) and terms.expires_in > longest
    expires_in = longest if is_longer else terms.expires_in
    return replace(terms, expires_in=expires_in, subject_token=user.token)
