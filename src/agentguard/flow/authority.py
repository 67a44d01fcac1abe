"""The agent instance that makes a call, what the agent may do, and on whose behalf.

``guard/instance.py`` makes these values; the steps of a call read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agentguard.call.client import Client
from agentguard.call.releases import Prover
from agentguard.delegation.claim import Claim
from agentguard.signing.canonical import Fragment
from agentguard.signing.keys import Signer


@dataclass(frozen=True, slots=True)
class Authority:
    """What an agent may do, and on whose behalf: its own authority, or a chain of delegation.

    ``principal`` is on whose behalf the agent acts; ``scope`` is what the agent may do, None for
    everything. ``actors`` are the chain's delegatees (``Chain.actors``). ``names`` are all names
    by which the authority can be revoked. ``since`` is the time from which the authority
    counts, which may be a moment after the call has looked at the clock: another thread may have
    derived it. ``ends_at`` is the end of the delegation, in seconds since the epoch; None on the
    agent's own.
    """

    principal: str
    scope: frozenset[str] | None
    names: frozenset[str]
    actors: Sequence[str] = ()
    chain_sha256: str | None = None
    token_jti: str | None = None
    task_id: str | None = None
    since: datetime | None = None
    ends_at: int | None = None
    description: Fragment | None = None
    """The canonical ``delegation`` of the policy's input; None on the agent's own authority."""

    lends: object = None
    """The delegation in force while the tool runs (``delegation/context.py``); None for none."""

    refused: Claim | None = None
    """The delegation that gives no authority, of a call that is refused for it; None for none."""

    prover: Prover | None = None
    """Signs proofs for the requests of the tool; None on the agent's own authority."""

    @property
    def is_proved(self) -> bool:
        """Whether signatures prove for whom the call is; else ``principal`` is only claimed."""
        return self.refused is None or self.refused.chain is not None

    def lacks(self, requires: Sequence[str]) -> list[str]:
        """Return the required scopes that are not in the authority's scope."""
        return [] if self.scope is None else [name for name in requires if name not in self.scope]


class DelegationSource(Protocol):
    """A delegation in force, as one agent instance may use it."""

    def authority(self, now: datetime) -> Authority | None:
        """Return the authority that was derived before and is still valid, None for none."""

    def derive(self, now: datetime) -> Authority:
        """Hand the chain on to the instance, verify it and put it on record.

        Raises ``DelegationError``, ``VerificationError``, ``DecodeError`` or ``StorageError``.
        """

    def claim(self, now: datetime) -> Claim | None:
        """Return whose delegation it is, where it gives no authority; None where nobody knows."""


class AgentIdentity(Protocol):
    """Who acts: the agent's name and type, and the URI of the instance."""

    @property
    def name(self) -> str:
        """The agent's name in the configuration."""

    @property
    def uri(self) -> str:
        """The instance's identifier (``spiffe://``)."""

    @property
    def type(self) -> str:
        """The agent's type."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The agent instance that makes the call.

    ``own`` is the agent's own authority, None where it has none. ``has_credential`` says whether
    the instance has a credential at a time that needs no renewal yet; ``renew`` gets one.
    """

    name: str
    own: Authority | None
    signer: Signer
    has_credential: Callable[[datetime], bool]
    renew: Callable[[datetime], None]
    description: Fragment
    """The canonical ``{id, name, type, instance}`` of the policy's input."""

    uri: str
    type: str = ""
    owner: str | None = None
    """The principal who owns the agent, and may not approve the agent's calls."""

    client: Client | None = None
    """The process that makes the agent's calls through a guard server; None in this process."""

    @property
    def alone(self) -> Authority:
        """The agent without any authority but its own: a refused call is recorded under this."""
        return self.own or Authority(f"agent:{self.name}", frozenset(), frozenset())

    def refused(self, claim: Claim | None) -> Authority:
        """Under what a call is recorded whose delegation gives no authority."""
        if claim is None:
            return self.alone
        task_id = None if claim.chain is None else claim.chain.root.task_id
        return Authority(claim.principal, frozenset(), frozenset(), task_id=task_id, refused=claim)
