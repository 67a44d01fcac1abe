"""The delegations under which an agent instance can still act, as the log keeps them.

And the names that a revocation may have: who and what the log's delegations and credentials name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

from agentguard.audit import statements
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.find import read_entry_of_kind
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import phrases, row
from agentguard.cli.terminal import times
from agentguard.cli.terminal.location import Location
from agentguard.delegation import grant
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.storage import ledger


@dataclass(frozen=True, slots=True)
class Live:
    """A chain that ends with an instance and has not expired.

    ``refused`` is the code and the reason for which it is denied: revoked, or all is frozen.
    """

    chain: Chain
    refused: tuple[str, str] | None

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of a delegation."""
        leaf = self.chain.leaf
        return {
            "id": leaf.jti,
            "for": self.chain.principal,
            "through": list(self.chain.members[1:-1]),
            "scope": list(leaf.scope),
            "task_id": leaf.task_id,
            "expires_at": leaf.expires_at,
            "revoked": self.refused[1] if self.refused is not None else None,
        }

    def said(self) -> str:
        """Write it down for people."""
        leaf = self.chain.leaf
        scope = " ".join(leaf.scope) or "nothing"
        task = f", task {leaf.task_id}" if leaf.task_id is not None else ""
        ended = ""
        if self.refused is not None:
            code, reason = self.refused
            ended = f"; {'FROZEN' if code == 'domain.frozen' else 'REVOKED'}: {reason}"
        until = phrases.time(leaf)
        return f"{scope} for {self.chain.principal}{task}, until {until} ({leaf.jti}){ended}"


def live(where: Location, trust: TrustDocument, uri: str) -> list[Live]:
    """Return the delegations of an instance that have not expired, the newest last.

    One that does not verify is none: ``audit verify`` names it. Raises ``StorageError``.
    """
    with closing(where.reader()) as reader:
        found = {chain.sha256: chain for chain in _chains(reader, trust, uri)}
    if not found:  # by keys that are not this log's, nothing of the log verifies
        return []
    standing = ledger.current(where.state, where.anchor, trust)
    thawed = standing._replace(frozen=False)
    now = seconds(times.now())
    return [
        # what was revoked stays so after a thaw
        Live(chain, thawed.refusal(chain.names) or standing.refusal(chain.names))
        for chain in found.values()
        if now < chain.leaf.expires_at
    ]


def names(hop: Grant) -> frozenset[str]:
    """Return all by which what went through a hop can be revoked, as the hop says itself."""
    found = {hop.principal, hop.delegatee, hop.jti}
    found |= {hop.key_id} if not hop.is_asserted else set()  # that one is the issuer's
    name = credential.agent_name(hop.delegatee)
    return frozenset(found | ({f"agent:{name}"} if name is not None else set()))


def is_known(reader: LogReader, name: str) -> bool:
    """Whether a delegation or a credential of the log has this name; raises ``StorageError``.

    Nothing is verified. The ids of access tokens are not looked for: they stand in calls alone.
    """
    for kind, said in (("identity", _of_identity), ("delegation", _of_delegation)):
        for shard in reader.shards():
            for index in reader.search(shard, Search(kind=kind)):
                kept = read_entry_of_kind(reader, shard, index, kind)
                with suppress(AgentguardError):
                    if kept is not None and name in said(kept.entry):
                        return True
    return False


def _of_identity(parsed: Entry) -> frozenset[str]:
    uri = row.subject_of(str(parsed.members["credential"])) or ""
    return frozenset({uri, uri.rpartition("/")[2], f"agent:{credential.agent_name(uri)}"})


def _of_delegation(parsed: Entry) -> frozenset[str]:
    hops, _credentials = statements.chain_tokens(parsed)
    return frozenset[str]().union(*(names(grant.read(hop)) for hop in hops))


def _chains(reader: LogReader, trust: TrustDocument, uri: str) -> Iterator[Chain]:
    for shard in reader.shards():
        for index in reader.search(shard, Search(kind="delegation", agent=uri)):
            kept = read_entry_of_kind(reader, shard, index, "delegation")
            if kept is not None:
                with suppress(AgentguardError):
                    at = parse_time(kept.entry.at)
                    chain = statements.check_delegation(kept.entry, trust, at)
                    if chain.leaf.delegatee == uri:
                        yield chain
