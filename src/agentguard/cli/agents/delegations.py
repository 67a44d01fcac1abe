"""Delegations of the log: those under which an instance can still act, and the names in them.

A name here is a name that a revocation can have: a principal, a service, an agent, an instance, a
key's thumbprint, or the id (``jti``) of a hop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

from agentguard.audit.entry import parse_time
from agentguard.audit.find import search_entries
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import times
from agentguard.cli.terminal.location import Location
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument, seconds


@dataclass(frozen=True, slots=True)
class LiveDelegation:
    """A chain that ends with an instance and has not expired.

    ``refusal`` is the reason code and the reason if its calls are denied, because a part of it is
    revoked or because the state is frozen; else None.
    """

    chain: Chain
    refusal: tuple[str, str] | None

    def as_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints of a delegation."""
        leaf = self.chain.leaf
        return {
            "id": leaf.jti,
            "for": self.chain.principal,
            "through": list(self.chain.members[1:-1]),
            "scope": list(leaf.scope),
            "task_id": leaf.task_id,
            "expires_at": leaf.expires_at,
            "revoked": self.refusal[1] if self.refusal is not None else None,
        }

    def describe(self) -> str:
        """Return one line about the delegation for people."""
        leaf = self.chain.leaf
        scope = " ".join(leaf.scope) or "nothing"
        task = f", task {leaf.task_id}" if leaf.task_id is not None else ""
        denial = ""
        if self.refusal is not None:
            code, reason = self.refusal
            denial = f"; {'FROZEN' if code == 'domain.frozen' else 'REVOKED'}: {reason}"
        until = phrases.time(leaf)
        return f"{scope} for {self.chain.principal}{task}, until {until} ({leaf.jti}){denial}"


def live(location: Location, trust: TrustDocument, uri: str) -> list[LiveDelegation]:
    """Return the delegations of an instance that have not expired, the newest last.

    A delegation that does not verify is left out; ``audit verify`` names it. Raises
    ``StorageError``.
    """
    with closing(location.reader()) as reader:
        chains = {chain.sha256: chain for chain in _chains(reader, trust, uri)}
    if not chains:  # with the keys of another log, its head would not verify either
        return []
    now = seconds(times.now())
    unended = [chain for chain in chains.values() if now < chain.leaf.expires_at]
    with closing(location.log(trust)) as log:
        return log.look(
            lambda state: [LiveDelegation(chain, state.refusal(chain.names)) for chain in unended]
        )


def names(hop: Grant) -> frozenset[str]:
    """Return the names in an unverified hop by which a call through the hop can be revoked."""
    result = {hop.principal, hop.delegatee, hop.jti}
    if not hop.is_asserted:  # the key of an asserted hop is the issuer's
        result.add(hop.key_id)
    name = credential.agent_name(hop.delegatee)
    if name is not None:
        result.add(f"agent:{name}")
    if hop.subject_token is not None:
        result |= hop.subject_token.login(hop.issued_at).names
    return frozenset(result)


def is_known(reader: LogReader, name: str) -> bool:
    """Whether a delegation or a credential of the log has this name; raises ``StorageError``.

    Nothing is verified. The ids of access tokens are not searched: only the entries of calls have
    them, and these are too many to read.
    """
    for identity in search_entries(reader, IdentityEntry, Search()):
        uri = identity.entry.agent
        if name in (uri, uri.rpartition("/")[2], f"agent:{credential.agent_name(uri)}"):
            return True
    for delegation in search_entries(reader, DelegationEntry, Search()):
        if any(name in names(hop) for hop in delegation.entry.hops):
            return True
    return False


def _chains(reader: LogReader, trust: TrustDocument, uri: str) -> Iterator[Chain]:
    for located in search_entries(reader, DelegationEntry, Search(agent=uri)):
        with suppress(AgentguardError):
            chain = located.entry.verified(trust, parse_time(located.entry.at))
            if chain.leaf.delegatee == uri:
                yield chain
