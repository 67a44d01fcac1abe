"""An agent in one process: its key, its credential, and what is lent to it.

The handles with which an application makes calls stand in ``agent.py``; what a credential, a chain
or a token is, and must hold, in ``identity/`` and ``delegation/``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from agentguard.audit import entry
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
"""Seconds before its end at which a credential is renewed."""

TOKEN_RENEW_BEFORE: Final = 30
"""Seconds before its end at which an access token is renewed."""

MAX_BORROWED: Final = 4096
"""How many delegations an instance holds at once; past it the oldest is handed on anew."""


class Instance:
    """An agent in one process: its key, its credential, and the line that its calls run down."""

    def __init__(
        self,
        config: AgentConfig,
        home: Callable[[], Domain],
        line: Line,
        holder: Callable[[datetime], Holder],
    ) -> None:
        self.line = line
        self._profile = config.profile
        self._max_scope = config.scope
        self._require_delegator = config.require_delegator
        self._home = home
        self._holder = holder
        self._renewal = threading.RLock()  # a signal handler may make a call meanwhile
        self._renew_at = 0
        self._current: Credential | None = None
        self._borrowing = threading.RLock()  # likewise
        self._borrowed: dict[tuple[str, tuple[str, ...]], _Borrowed] = {}
        signer = Ed25519Signer.from_seed(line.entropy(32))
        name = self._profile.name
        uri = credential.agent_uri(home().trust.trust_domain, name, signer.public_key)
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
        """Have a credential made, verified and recorded, unless another thread just did."""
        at = seconds(now)
        with self._renewal:
            if self._has_credential(now):
                return
            home = self._home()
            issued = credential.issue(
                home.issuer,
                home.trust.trust_domain,
                self._profile,
                self.actor.signer.public_key,
                now=at,
                jti=self.line.entropy(16).hex(),
            )
            verified = credential.verify(issued.token, home.trust, at=at)
            # it precedes, in the log, every call that is made with it
            self.line.log.enqueue(entry.identity(verified, at=timestamp(now)))
            self._current = verified
            self._renew_at = verified.expires_at - RENEW_BEFORE

    def holder(self, now: datetime) -> Holder:
        """Return this instance's key, with a credential that shows whose it is now."""
        return Holder(self.actor.signer, self._credential(now))

    def _credential(self, now: datetime) -> Credential:
        if not self._has_credential(now):
            self._renew(now)
        current = self._current
        assert current is not None  # noqa: S101  it was just made, or that has raised
        return current

    # --- what is lent to it ----------------------------------------------------------------------

    def lent(self, delegation: Delegation | DelegationError | None) -> _Lent | _Refused | None:
        """Return what is lent to this instance: ``delegation``, or else what is in force here."""
        if isinstance(delegation, DelegationError):
            return _Refused(delegation)
        if delegation is not None:
            return _Lent(self, delegation)
        try:
            found = context.in_force()
        except DelegationError as error:
            return _Refused(error)
        return _Lent(self, found) if isinstance(found, Delegation) else None

    def run(self, delegation: Delegation | DelegationError | None) -> AgentRun:
        """Describe a run of this agent under ``delegation``, or else what is in force here."""
        found: object = delegation
        with suppress(DelegationError):  # it has ended: each call of the run is refused for that
            found = delegation or context.in_force()
        own = f"agent:{self.actor.name}"
        if not isinstance(found, Delegation):
            return AgentRun(self.actor.alone.principal, (), None)
        chain = found.chain
        handed = chain.leaf.delegatee == self.actor.uri  # else that is done at the first call
        actors = chain.actors if handed else [*chain.actors, own]
        return AgentRun(chain.principal, actors, chain.root.task_id)

    def borrowed(self, delegation: Delegation, now: datetime) -> _Borrowed | None:
        """Return what was handed on to this instance already, if it is good for a call now."""
        found = self._borrowed.get(delegation.key)
        return found if found is not None and seconds(now) < found.renew_at else None

    def borrow(self, delegation: Delegation, now: datetime) -> _Borrowed:
        """Hand the chain on to this instance, as others would verify it, and put it on record."""
        at = seconds(now)
        with self._borrowing:
            known = self.borrowed(delegation, now)
            if known is not None:
                return known
            if now >= delegation.expires_at:
                self._borrowed.pop(delegation.key, None)
                message = f"the delegation of {delegation.principal} has expired: get a new one"
                raise DelegationError(message, code="delegation.expired")
            home = self._home()
            before = self._borrowed.get(delegation.key)
            # a key under which it was handed on may be known as stolen by now
            chain = (
                verification.from_json(before.token.chain.as_json(), home.trust, at=at)
                if before
                else self._handed_on(delegation, home, now)
            )
            token = access_token.mint(chain, home.issuer, now=at, jti=self.line.entropy(16).hex())
            lasts = token.expires_at < chain.leaf.expires_at  # then it is renewed before its end
            borrowed = _Borrowed(
                self._authority(token),
                token,
                token.expires_at - TOKEN_RENEW_BEFORE if lasts else token.expires_at,
            )
            if before is None and len(self._borrowed) >= MAX_BORROWED:
                del self._borrowed[next(iter(self._borrowed))]  # the oldest
            self._borrowed[delegation.key] = borrowed
            return borrowed

    def _handed_on(self, delegation: Delegation, home: Domain, now: datetime) -> Chain:
        at = seconds(now)
        chain = delegation.chain
        if chain.leaf.delegatee != self.actor.uri or chain.leaf.scope != delegation.scope:
            holder = delegation.holder(now)
            if holder.credential is not None:
                self._require_delegator(credential.agent_name(holder.credential.uri))
            most = self._max_scope
            chain = issuance.extend(
                chain,
                holder.signer,
                self._credential(now),
                by=holder.credential,
                scope=[one for one in delegation.scope if most is None or one in most],
                now=at,
                jti=self.line.entropy(16).hex(),
            )
        verified = verification.from_json(chain.as_json(), home.trust, at=at)
        # it precedes, in the log, every call that is made under it
        self.line.log.enqueue(entry.delegation(verified, at=timestamp(now)))
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

    def access_token(self, lent: _Lent | _Refused) -> str:
        """Return the token of what is lent; raises as a call under it would be refused."""
        borrowed = lent.borrowed(self._now())
        refused = self.line.revocations.refusal(borrowed.authority.names)
        if refused is not None:
            code, reason = refused
            raise DelegationError(reason, code=code)
        return borrowed.token.token


class _Borrowed(NamedTuple):
    """A chain that ends with an instance, the token minted from it, and what they allow."""

    authority: Authority
    token: AccessToken
    renew_at: int


class _Lent(NamedTuple):
    """A delegation, as one instance may use it (``effects.DelegationSource``)."""

    instance: Instance
    delegation: Delegation

    def authority(self, now: datetime) -> Authority | None:
        found = self.instance.borrowed(self.delegation, now)
        return found.authority if found is not None else None

    def derive(self, now: datetime) -> Authority:
        return self.instance.borrow(self.delegation, now).authority

    def borrowed(self, now: datetime) -> _Borrowed:
        found = self.instance.borrowed(self.delegation, now)
        return found if found is not None else self.instance.borrow(self.delegation, now)


class _Refused(NamedTuple):
    """Stands for a delegation that has ended, or fails (``effects.DelegationSource``)."""

    error: DelegationError

    def authority(self, now: datetime) -> Authority | None:  # noqa: ARG002  at any time
        raise self.error

    def derive(self, now: datetime) -> Authority:  # noqa: ARG002
        raise self.error

    def borrowed(self, now: datetime) -> _Borrowed:  # noqa: ARG002
        raise self.error


def _description(uri: str, config: AgentConfig, instance: str) -> Fragment:
    """The agent as the policy sees it (policies.md, Input)."""
    described = {
        "id": uri,
        "name": config.profile.name,
        "type": config.profile.type,
        "instance": instance,
        "roles": list(config.roles),
    }
    return Fragment(canonical.dumps(described))


def _delegation(chain: Chain, roles: Sequence[str]) -> Fragment:
    """The chain as the policy sees it (policies.md, Input)."""
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
