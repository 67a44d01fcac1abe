"""An agent in one process: its key, its credential, and the delegations that it has accepted.

``agent.py`` has the handles with which an application makes calls. ``identity/`` and
``delegation/`` say what credentials, chains and tokens are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from agentguard.audit import records
from agentguard.call.invocation import timestamp
from agentguard.delegation import access_token, context, issuance, verification
from agentguard.delegation.access_token import AccessToken
from agentguard.delegation.chain import Chain
from agentguard.delegation.handle import Delegation, Holder
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.ephemeral import Domain
from agentguard.errors import DelegationError
from agentguard.flow.effects import Actor, Authority, Line
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import seconds
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, Fragment
from agentguard.signing.keys import Ed25519Signer
from agentguard.telemetry import AgentRun

RENEW_BEFORE: Final = 300
"""A credential is renewed so many seconds before its end."""

TOKEN_RENEW_BEFORE: Final = 30
"""An access token is renewed so many seconds before its end."""

MAX_ACCEPTANCES: Final = 4096
"""The most delegations that an instance keeps; the oldest is dropped, and accepted anew if used."""


class Instance:
    """An agent in one process: its key, its credential, and the parts that its calls run on.

    ``domain`` returns the trust domain as it is now; ``holder`` returns who hands a chain on that
    ends with this agent. The methods may be called from any thread.
    """

    def __init__(
        self,
        config: AgentConfig,
        domain: Callable[[], Domain],
        line: Line,
        holder: Callable[[datetime], Holder],
    ) -> None:
        self.line = line
        self._profile = config.profile
        self._max_scope = config.scope
        self._require_delegator = config.require_delegator
        self._domain = domain
        self._holder = holder
        self._credential_lock = threading.RLock()  # a signal handler may make a call meanwhile
        self._renew_at = 0
        self._current: Credential | None = None
        self._acceptance_lock = threading.RLock()  # for the same reason
        self._acceptances: dict[tuple[str, tuple[str, ...]], _Acceptance] = {}
        signer = Ed25519Signer.from_seed(line.entropy(32))
        name = self._profile.name
        uri = credential.agent_uri(domain().trust.trust_domain, name, signer.public_key)
        self._names = frozenset({uri, f"agent:{name}", signer.key_id})
        own = Authority(f"agent:{name}", config.scope, self._names)
        self.actor = Actor(
            name=name,
            own=own if config.authority == "own" else None,
            signer=signer,
            has_credential=self._has_credential,
            renew=self._renew,
            description=_description(uri, config, signer.key_id),
            uri=uri,
            type=self._profile.type,
            owner=config.profile.owner,
        )
        self._renew(self._now())
        line.log.flush()

    def _now(self) -> datetime:
        return max(self.line.clock(), self.line.log.last_at)

    # --- the credential --------------------------------------------------------------------------

    def _has_credential(self, now: datetime) -> bool:
        return self._current is not None and seconds(now) < self._renew_at

    def _renew(self, now: datetime) -> None:
        """Issue, verify and record a credential, unless another thread just did."""
        at = seconds(now)
        with self._credential_lock:
            if self._has_credential(now):
                return
            domain = self._domain()
            issued = credential.issue(
                domain.issuer,
                domain.trust.trust_domain,
                self._profile,
                self.actor.signer.public_key,
                now=at,
                jti=self.line.entropy(16).hex(),
            )
            verified = credential.verify(issued.token, domain.trust, at=at)
            # the log has the credential before every call that is made with it
            self.line.log.enqueue(records.identity(verified, at=timestamp(now)))
            self._current = verified
            self._renew_at = verified.expires_at - RENEW_BEFORE

    def holder(self, now: datetime) -> Holder:
        """Return this instance as a chain's holder: its key, and a credential valid now."""
        return Holder(self.actor.signer, self._credential(now))

    def _credential(self, now: datetime) -> Credential:
        if not self._has_credential(now):
            self._renew(now)
        current = self._current
        assert current is not None  # noqa: S101  _renew sets it or raises
        return current

    # --- its delegations -------------------------------------------------------------------------

    def delegation_source(self, delegation: Delegation | DelegationError | None) -> _Source | None:
        """Return the source of a call's authority: ``delegation``, or else the one in force here.

        None leaves the agent its own authority, if it has any. An error takes the place of a
        delegation that can't be used: each call is refused for that error.
        """
        if delegation is not None:
            return _Source(self, delegation)
        try:
            current = context.in_force()
        except DelegationError as error:
            return _Source(self, error)
        return _Source(self, current) if isinstance(current, Delegation) else None

    def describe_run(self, delegation: Delegation | DelegationError | None) -> AgentRun:
        """Describe a run of this agent under ``delegation``, or else the one in force here."""
        current: object = delegation
        with suppress(DelegationError):  # it has ended: each call of the run is denied for that
            current = delegation or context.in_force()
        own = f"agent:{self.actor.name}"
        if not isinstance(current, Delegation):
            return AgentRun(self.actor.alone.principal, (), None)
        chain = current.chain
        is_accepted = chain.leaf.delegatee == self.actor.uri  # else at the first call
        actors = chain.actors if is_accepted else [*chain.actors, own]
        return AgentRun(chain.principal, actors, chain.root.task_id)

    def acceptance(self, delegation: Delegation, now: datetime) -> _Acceptance | None:
        """Return the earlier acceptance of a delegation, or None if it must be accepted anew."""
        acceptance = self._acceptances.get(delegation.key)
        is_valid = acceptance is not None and seconds(now) < acceptance.renew_at
        return acceptance if is_valid else None

    def accept(self, delegation: Delegation, now: datetime) -> _Acceptance:
        """Have the holder sign a hop for this instance; verify and record the chain; mint a token.

        Of an earlier acceptance only the token is renewed. Raises ``DelegationError`` and
        ``VerificationError``.
        """
        at = seconds(now)
        with self._acceptance_lock:
            acceptance = self.acceptance(delegation, now)
            if acceptance is not None:
                return acceptance
            if now >= delegation.expires_at:
                self._acceptances.pop(delegation.key, None)
                message = f"the delegation of {delegation.principal} has expired: get a new one"
                raise DelegationError(message, code="delegation.expired")
            domain = self._domain()
            earlier = self._acceptances.get(delegation.key)
            # a key that signed the chain may have become known as stolen since then
            chain = (
                verification.from_json(earlier.token.chain.as_json(), domain.trust, at=at)
                if earlier
                else self._extended_chain(delegation, domain, now)
            )
            token = access_token.mint(chain, domain.issuer, now=at, jti=self.line.entropy(16).hex())
            is_renewable = token.expires_at < chain.leaf.expires_at
            acceptance = _Acceptance(
                self._authority(token),
                token,
                token.expires_at - TOKEN_RENEW_BEFORE if is_renewable else token.expires_at,
            )
            if earlier is None and len(self._acceptances) >= MAX_ACCEPTANCES:
                del self._acceptances[next(iter(self._acceptances))]  # the oldest
            self._acceptances[delegation.key] = acceptance
            return acceptance

    def _extended_chain(self, delegation: Delegation, domain: Domain, now: datetime) -> Chain:
        """Return the chain with a hop to this instance, verified as others do, and on record."""
        at = seconds(now)
        chain = delegation.chain
        if chain.leaf.delegatee != self.actor.uri or chain.leaf.scope != delegation.scope:
            holder = delegation.holder(now)
            if holder.credential is not None:
                self._require_delegator(credential.agent_name(holder.credential.uri))
            limit = self._max_scope
            chain = issuance.extend(
                chain,
                holder.signer,
                self._credential(now),
                by=holder.credential,
                scope=[token for token in delegation.scope if limit is None or token in limit],
                now=at,
                jti=self.line.entropy(16).hex(),
            )
        verified = verification.from_json(chain.as_json(), domain.trust, at=at)
        # the log has the chain before every call under it
        self.line.log.enqueue(records.delegation(verified, at=timestamp(now)))
        return verified

    def _authority(self, token: AccessToken) -> Authority:
        chain = token.chain
        return Authority(
            principal=chain.principal,
            scope=frozenset(chain.leaf.scope),
            names=self._names | chain.names | {token.jti},
            actors=chain.actors,
            chain_sha256=chain.sha256,
            token_jti=token.jti,
            task_id=chain.root.task_id,
            limits=chain.limits,
            since=datetime.fromtimestamp(chain.leaf.issued_at, UTC),
            description=_delegation(chain, self.line.principal_roles.get(chain.principal, ())),
            lends=Delegation(chain, self._holder, chain.leaf.scope),
        )

    def access_token(self, source: _Source) -> str:
        """Return the access token of a delegation; raise where a call under it would be denied."""
        acceptance = source.accept(self._now())
        refused = self.line.revocations.refusal(acceptance.authority.names)
        if refused is not None:
            code, reason = refused
            raise DelegationError(reason, code=code)
        return acceptance.token.token


class _Acceptance(NamedTuple):
    """A delegation that an instance has accepted: its authority, and its token, to renew at a time.

    ``renew_at`` is in seconds since the epoch.
    """

    authority: Authority
    token: AccessToken
    renew_at: int


class _Source(NamedTuple):
    """The authority that one instance has from a delegation (``effects.DelegationSource``).

    An error in place of the delegation is raised by every method.
    """

    instance: Instance
    delegation: Delegation | DelegationError

    def authority(self, now: datetime) -> Authority | None:
        acceptance = self.instance.acceptance(self._usable(), now)
        return acceptance.authority if acceptance is not None else None

    def derive(self, now: datetime) -> Authority:
        return self.accept(now).authority

    def accept(self, now: datetime) -> _Acceptance:
        return self.instance.accept(self._usable(), now)

    def _usable(self) -> Delegation:
        if isinstance(self.delegation, DelegationError):
            raise self.delegation
        return self.delegation


def _description(uri: str, config: AgentConfig, instance: str) -> Fragment:
    """Return the agent as the policy's input has it (policies.md, Input)."""
    described = {
        "id": uri,
        "name": config.profile.name,
        "type": config.profile.type,
        "instance": instance,
        "roles": list(config.roles),
    }
    return Fragment(canonical.dumps(described))


def _delegation(chain: Chain, roles: Sequence[str]) -> Fragment:
    """Return the chain as the policy's input has it (policies.md, Input)."""
    described: dict[str, JSON] = {
        "subject": chain.principal,
        "actor": chain.principal,
        "via": chain.via,
        "chain": list(chain.members),
        "scope": list(chain.leaf.scope),
        "depth": len(chain.hops),
        "assurance": chain.root.assurance,
        "roles": list(roles),
    }
    return Fragment(canonical.dumps(described))
