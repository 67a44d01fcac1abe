"""An agent instance in one process: the key, the credential, and the accepted delegations.

``agent.py`` has the handles with which an application makes calls. ``identity/`` defines
credentials; ``delegation/`` defines chains and access tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry
from agentguard.call.client import Client
from agentguard.call.decision import Decision
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import Invocation, timestamp
from agentguard.call.options import CallOptions
from agentguard.delegation import access_token, chain_issuance, context, verification
from agentguard.delegation.access_token import AccessToken, IssuedToken
from agentguard.delegation.chain import Chain
from agentguard.delegation.claim import Claim, claim_of
from agentguard.delegation.handle import Delegation, Holder
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.protocol import Domain
from agentguard.errors import DelegationError
from agentguard.flow.authority import Actor, Authority
from agentguard.flow.authorize import authorize
from agentguard.flow.drive import Flow
from agentguard.flow.guarded_call import evaluate, guarded_call
from agentguard.flow.listener import CallListener
from agentguard.flow.ports import Ports
from agentguard.flow.prepare import CallInput
from agentguard.guard.acceptances import Acceptance, Acceptances, Room
from agentguard.guard.descriptions import agent_description, delegation_description
from agentguard.guard.parts import CurrentDelegation
from agentguard.guard.prover import DelegatedProver
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.revocation import require_unrevoked
from agentguard.identity.trust import seconds
from agentguard.signing.keys import Ed25519Signer, Signer
from agentguard.telemetry import AgentRun

RENEW_BEFORE: Final = 300
"""Seconds before a credential's expiry at which the instance renews the credential."""

TOKEN_RENEW_BEFORE: Final = 30
"""Seconds before an access token's expiry at which the instance renews the token."""


class Instance:
    """An agent instance in one process: the key, the credential, and the accepted delegations.

    ``domain`` returns the current trust domain. ``ports`` has the parts that the agent's calls use.
    ``roles_of`` returns the roles of a chain's principal for the policy's input, and may raise
    ``AgentguardError``. ``client`` makes the calls through a guard server, which has ``room`` for
    the accepted delegations. The methods may be called from any thread.
    """

    def __init__(
        self,
        config: AgentConfig,
        domain: Callable[[], Domain],
        ports: Ports,
        roles_of: Callable[[Chain], Sequence[str]],
        client: Client | None = None,
        room: Room | None = None,
    ) -> None:
        self.ports = ports
        self.config = config
        self._domain = domain
        self._roles_of = roles_of
        # RLocks: no call that interrupts this thread waits for it
        self._credential_lock = threading.RLock()
        self._isolation = access_token.SAME_PROCESS if client is None else client.isolation
        self._renew_at = 0
        self._is_abandoned = False
        self._current: Credential | None = None
        self._acceptance_lock = threading.RLock()
        self._acceptances = Acceptances(room)
        signer = Ed25519Signer.from_seed(ports.entropy(32))
        name = config.name
        uri = credential.agent_uri(domain().trust.trust_domain, name, signer.public_key)
        self._names = frozenset({uri, f"agent:{name}", signer.key_id})
        own = Authority(f"agent:{name}", config.scope, self._names)
        self.actor = Actor(
            name=name,
            own=own if config.authority == "own" else None,
            signer=signer,
            has_credential=self._has_credential,
            renew=self._renew,
            description=agent_description(uri, config, signer.key_id, client),
            uri=uri,
            type=config.type,
            owner=config.owner,
            client=client,
        )
        self._renew(ports.now())
        ports.log.flush()

    # --- the credential --------------------------------------------------------------------------

    def _has_credential(self, now: datetime) -> bool:
        return now.timestamp() < self._renew_at

    def _renew(self, now: datetime) -> None:
        """Issue, verify and record a credential, unless the current one is not due for renewal."""
        at = seconds(now)
        with self._credential_lock:
            if self._has_credential(now):
                return
            domain = self._domain()
            issued = credential.issue(
                domain.issuer,
                domain.trust.trust_domain,
                self.config.profile,
                self.actor.signer.public_key,
                now=at,
                jti=self.ports.entropy(16).hex(),
            )
            verified = credential.verify(issued.token, domain.trust, at=at)
            # enqueued first, so that the log has the credential before any call that uses it
            self.ports.log.enqueue(IdentityEntry.new(verified, at=timestamp(now)))
            self._current = verified
            self._renew_at = verified.expires_at - RENEW_BEFORE

    def abandon(self) -> None:
        """Leave the key to the parent, in a forked process: nothing is handed on with it here."""
        self._is_abandoned = True

    def holder(self, now: datetime) -> Holder:
        """Return the key that signs the next hop of a chain, and a valid credential of the key.

        Raises ``DelegationError`` (``delegation.holder``) in a fork of the instance's process.
        """
        if self._is_abandoned:
            message = "the agent that holds this delegation is in the parent of this process"
            raise DelegationError(message, code="delegation.holder")
        return Holder(self.actor.signer, self._credential(now))

    def _credential(self, now: datetime) -> Credential:
        if not self._has_credential(now):
            self._renew(now)
        current = self._current
        assert current is not None  # noqa: S101  _renew sets it or raises
        return current

    # --- its delegations -------------------------------------------------------------------------

    def delegation_source(
        self, delegation: CurrentDelegation, may_show: Callable[[Chain], bool] | None = None
    ) -> _Source | None:
        """Return the source of a call's authority: ``delegation``, or else the one in force here.

        Returns None where no delegation is given or in force: the agent then acts on its own
        authority, if the configuration grants any. An error in place of a delegation refuses each
        call with that error. ``may_show`` returns whether the chain of a refused delegation proves
        for whom the call is; a chain for which it returns False only claims that. None stands for a
        function that always returns True.
        """
        if delegation is not None:
            return _Source(self, delegation, may_show)
        try:
            current = context.in_force()
        except DelegationError as error:
            return _Source(self, error)
        return _Source(self, current) if isinstance(current, Delegation) else None

    def describe_run(self, delegation: CurrentDelegation) -> AgentRun:
        """Describe a run of this agent under ``delegation``, or else the one in force here."""
        current: object = delegation
        with suppress(DelegationError):  # an ended delegation, with which each call is denied
            current = delegation or context.in_force()
        own = f"agent:{self.actor.name}"
        if not isinstance(current, Delegation):
            return AgentRun(self.actor.alone.principal, (), None)
        chain = current.chain
        # otherwise the first call adds a hop to this agent
        is_accepted = chain.leaf.delegatee == self.actor.uri
        actors = chain.actors if is_accepted else [*chain.actors, own]
        return AgentRun(chain.principal, actors, chain.root.task_id)

    def acceptance(self, delegation: Delegation, now: datetime) -> Acceptance | None:
        """Return the earlier acceptance of a delegation, None if absent or expired."""
        acceptance = self._acceptances.get(delegation.key)
        is_valid = acceptance is not None and seconds(now) < acceptance.renew_at
        return acceptance if is_valid else None

    def accept(self, delegation: Delegation, now: datetime) -> Acceptance:
        """Have the holder sign a hop for this instance; verify and record the chain; mint a token.

        If the instance accepted the delegation earlier, verify the chain again, and mint a token.
        Raises ``DelegationError`` and ``VerificationError``.
        """
        at = seconds(now)
        with self._acceptance_lock:
            acceptance = self.acceptance(delegation, now)
            if acceptance is not None:
                return acceptance
            if now >= delegation.expires_at:
                self._acceptances.drop(delegation.key)
                message = f"the delegation of {delegation.principal} has expired: get a new one"
                raise DelegationError(message, code="delegation.expired")
            domain = self._domain()
            earlier = self._acceptances.get(delegation.key)
            # verified again, because a key that signed the chain may have been revoked meanwhile
            chain = (
                verification.from_json(earlier.token.chain.as_json(), domain.trust, at=at)
                if earlier
                else self._extended_chain(delegation, domain, now)
            )
            token = access_token.mint(
                chain,
                domain.issuer,
                now=at,
                jti=self.ports.entropy(16).hex(),
                isolation=self._isolation,
            )
            is_renewable = token.expires_at < chain.leaf.expires_at
            acceptance = Acceptance(
                self._authority(token, delegation),
                token,
                token.expires_at - TOKEN_RENEW_BEFORE if is_renewable else token.expires_at,
            )
            self._acceptances.keep(delegation.key, acceptance)
            return acceptance

    def claim_of(self, refused: object, now: datetime) -> Claim | None:
        """Return whose delegation is refused (``delegation/claim.py``)."""
        return claim_of(refused, self._domain().trust, at=seconds(now))

    def follow(self, ports: Ports, roles_of: Callable[[Chain], Sequence[str]]) -> None:
        """Use other ``ports``, and accept delegations anew, from the next call on.

        The guard's configuration was loaded anew, and says the same of the agent as before.
        """
        with self._acceptance_lock:
            self._acceptances.clear()
            self._roles_of = roles_of
            self.ports = ports

    def release(self) -> None:
        """Keep no acceptance any more: whoever had this instance makes no new call with it."""
        with self._acceptance_lock:
            self._acceptances.end()

    def _extended_chain(self, delegation: Delegation, domain: Domain, now: datetime) -> Chain:
        """Return the chain with a hop to this instance, after its verification and recording."""
        at = seconds(now)
        chain = delegation.chain
        if chain.leaf.delegatee != self.actor.uri or chain.leaf.scope != delegation.scope:
            holder = delegation.holder(now)
            if holder.credential is not None:
                self.config.require_delegator(credential.agent_name(holder.credential.uri))
            limit = self.config.scope
            chain = chain_issuance.extend(
                chain,
                holder.signer,
                self._credential(now),
                by=holder.credential,
                scope=[token for token in delegation.scope if limit is None or token in limit],
                now=at,
                jti=self.ports.entropy(16).hex(),
            )
        verified = verification.from_json(chain.as_json(), domain.trust, at=at)
        # enqueued first, so that the log has the chain before any call under it
        self.ports.log.enqueue(DelegationEntry.new(verified, at=timestamp(now)))
        return verified

    def _authority(self, token: AccessToken, delegation: Delegation) -> Authority:
        chain = token.chain
        return Authority(
            principal=chain.principal,
            scope=frozenset(chain.leaf.scope),
            names=self._names | chain.names | {token.jti},
            actors=chain.actors,
            chain_sha256=chain.sha256,
            token_jti=token.jti,
            task_id=chain.root.task_id,
            since=datetime.fromtimestamp(chain.leaf.issued_at, UTC),
            ends_at=chain.leaf.expires_at,
            description=delegation_description(chain, self._roles_of(chain)),
            lends=Delegation(chain, self.holder, chain.leaf.scope),
            prover=DelegatedProver(self, delegation),
        )

    def access_token(self, delegation: CurrentDelegation) -> IssuedToken | None:
        """Return the access token of a delegation, None where no delegation is given or in force.

        Raises ``AgentguardError`` where a call under the delegation would be refused.
        """
        source = self.delegation_source(delegation)
        if source is None:
            return None
        acceptance = source.accept(self.ports.now())
        require_unrevoked(self.ports.log, acceptance.authority.names)
        return IssuedToken(acceptance.token.token, acceptance.token.chain.dumps())

    # --- its calls -------------------------------------------------------------------------------

    def guarded_call(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: CurrentDelegation,
    ) -> Flow[Any]:
        """Return the steps of a guarded call, inside the call that runs here, if any."""
        return guarded_call(self._input(invocation, listener, options, delegation))

    def evaluate(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: CurrentDelegation,
    ) -> Flow[Decision]:
        """Return the steps that lead to the decision on a call, and run nothing."""
        return evaluate(self._input(invocation, listener, options, delegation))

    def authorize(
        self,
        invocation: Invocation,
        listener: CallListener,
        delegation: CurrentDelegation,
    ) -> Flow[Evaluation]:
        """Return the steps that lead to a signed decision on a call, and run nothing."""
        return authorize(self._input(invocation, listener, CallOptions(), delegation), self.issuer)

    def issuer(self) -> Signer:
        """Return the issuer's signer, which signs the evaluations."""
        return self._domain().issuer

    def _input(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: CurrentDelegation,
    ) -> CallInput:
        around = context.running_call()
        if around is not None:
            invocation = replace(invocation, inside=around.invocation_id)
        return CallInput(
            self.actor,
            self.ports,
            invocation,
            listener,
            self.delegation_source(delegation),
            options,
            NestedCalls(None if around is None else around.nested_calls),
            None if around is None else around.releases,
        )


class _Source(NamedTuple):
    """The authority that one instance has from a delegation (``flow.authority.DelegationSource``).

    With an error in place of the delegation, every method raises the error.
    """

    instance: Instance
    delegation: Delegation | DelegationError
    may_show: Callable[[Chain], bool] | None = None

    def authority(self, now: datetime) -> Authority | None:
        acceptance = self.instance.acceptance(self._usable_delegation(), now)
        return acceptance.authority if acceptance is not None else None

    def derive(self, now: datetime) -> Authority:
        return self.accept(now).authority

    def accept(self, now: datetime) -> Acceptance:
        return self.instance.accept(self._usable_delegation(), now)

    def claim(self, now: datetime) -> Claim | None:
        given: object = self.delegation
        if isinstance(given, DelegationError):
            given = given.delegation
        if isinstance(given, Delegation):
            given = given.chain
        claim = self.instance.claim_of(given, now)
        if claim is None or claim.chain is None or self.may_show is None:
            return claim
        return claim if self.may_show(claim.chain) else Claim(claim.principal)

    def _usable_delegation(self) -> Delegation:
        if isinstance(self.delegation, DelegationError):
            raise self.delegation
        return self.delegation
