"""The value ``Chain``: the signed hops that lead from a principal to the agent that acts.

``chain_issuance.py`` begins and extends chains; ``verification.py`` verifies chains from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentguard.delegation import attenuation, grant
from agentguard.delegation.grant import Grant, Hop
from agentguard.identity.credential import Credential, agent_name
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

CHAIN_TYPE: Final = "urn:agentguard:chain:v1"
"""The member ``type`` of a chain in a file of its own."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The hops of a delegation, issued here or verified; at least one.

    ``credentials`` are the credentials of the chain's agents, in the order in which a verifier
    needs them. An agent needs one that is valid when the agent receives a hop, and one that is
    valid when the agent signs the next hop; one credential may serve for both.
    """

    hops: tuple[Hop, ...]
    credentials: tuple[Credential, ...] = ()

    @property
    def root(self) -> Grant:
        """The first hop, which the issuer signs for the principal."""
        return self.hops[0].grant

    @property
    def leaf(self) -> Grant:
        """The last hop: the agent that acts, and the scope that the agent has."""
        return self.hops[-1].grant

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over the signing inputs of the hops, one after another."""
        return hops_digest([hop.token for hop in self.hops])

    @property
    def principal(self) -> str:
        """The principal for whom every hop is."""
        return self.root.principal

    @property
    def via(self) -> str | None:
        """The service through which the principal delegates; None for the application itself."""
        first = self.root
        return None if first.delegatee == first.delegator else first.delegatee

    @property
    def members(self) -> tuple[str, ...]:
        """The principal, and then each delegatee."""
        return (self.principal, *(hop.grant.delegatee for hop in self.hops))

    @property
    def actors(self) -> list[str]:
        """The delegatees, with ``agent:NAME`` for every instance of the agent NAME."""
        return [
            f"agent:{agent_name(member)}" if grant.is_agent(member) else member
            for member in self.members[1:]
        ]

    @property
    def names(self) -> frozenset[str]:
        """The names whose revocation ends the chain: members, actors, agents' keys, hops' ids.

        Of a user who came with a token, the names of the log-in are here, too.
        """
        grants = [hop.grant for hop in self.hops]
        keys = {each.key_id for each in grants if not each.is_asserted}  # else it is the issuer's
        token = self.root.subject_token
        login = frozenset[str]() if token is None else token.login(self.root.issued_at).names
        return frozenset(
            keys.union(self.members, self.actors, (each.jti for each in grants), login)
        )

    @property
    def issuer_keys(self) -> frozenset[str]:
        """The ids of the issuer keys that signed a hop or a credential of the chain."""
        delegators = (None, *(hop.grant for hop in self.hops))
        tokens = [
            hop.token
            for delegator, hop in zip(delegators, self.hops, strict=False)
            if delegator is None or delegator.is_asserted
        ]
        tokens += [credential.token for credential in self.credentials]
        return frozenset(grant.key_id(token) for token in tokens)

    @property
    def limits(self) -> list[tuple[str, int]]:
        """The hops with a limit of calls, as pairs ``(jti, max_calls)``."""
        limits = ((hop.grant.jti, hop.grant.max_calls) for hop in self.hops)
        return [(jti, max_calls) for jti, max_calls in limits if max_calls is not None]

    def check(self, at: int) -> None:
        """Raise unless every hop is valid at the time ``at`` (seconds since the epoch).

        Raises ``VerificationError`` (``hop.expired``, ``hop.not_yet_valid``).
        """
        for hop in self.hops:
            attenuation.check_time(hop.grant, at)

    def mismatch(self, principal: str, agent: str, task_id: JSON) -> str | None:
        """Return why the chain gives no authority to an agent, for a principal, in a task.

        None where it does. A chain that names no task is for each task.
        """
        if (principal, agent) != (self.principal, self.leaf.delegatee):
            return "its chain is of another principal, or ends with another agent"
        if self.root.task_id not in (None, task_id):
            return "its chain is for another task"
        return None

    def as_json(self) -> dict[str, JSON]:
        """Return the chain's tokens in the form that ``verification.from_json`` takes."""
        return {
            "hops": [hop.token for hop in self.hops],
            "credentials": [credential.token for credential in self.credentials],
        }

    def document(self) -> dict[str, JSON]:
        """Return the chain as a document of its own, which ``verification.loads`` takes as JSON."""
        return {"type": CHAIN_TYPE, **self.as_json()}

    def dumps(self) -> bytes:
        """Encode ``document`` in canonical JSON."""
        return canonical.dumps(self.document())


def hops_digest(tokens: Sequence[str]) -> str:
    """Return ``Chain.sha256`` of hops in their signed form, without verifying them."""
    signing_inputs = (token.rpartition(".")[0].encode() for token in tokens)
    return hashlib.sha256(b"".join(signing_inputs)).hexdigest()
