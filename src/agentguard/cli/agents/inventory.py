"""The agents of a state: their tables in the configuration, and their instances in the log.

Nothing of the log is verified here, except for a credential on request (``Instance.check``). The
commands that print agents are in ``agents.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentguard.audit.entry import parse_time
from agentguard.audit.kinds.identities import IdentityEntry
from agentguard.call.invocation import timestamp
from agentguard.cli.agents.delegations import LiveDelegation
from agentguard.cli.audit.history import History
from agentguard.cli.audit.log_row import Row
from agentguard.cli.terminal.location import Location
from agentguard.domain.config.agents import AgentConfig
from agentguard.errors import AgentguardError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument


@dataclass(slots=True)
class Instance:
    """An agent instance as the log shows it.

    ``token`` is its newest credential, a compact JWS, and ``token_at`` the time of the entry with
    it. ``credential`` is a sentence about that credential, and is complete after ``check``.
    """

    uri: str
    since: str | None
    token: str | None = None
    token_at: str | None = None
    decisions: Counter[str] = field(default_factory=Counter)
    last_call: str | None = None
    credential: str = "none in the log"
    delegations: list[LiveDelegation] = field(default_factory=list)

    def check(self, trust: TrustDocument) -> None:
        """Verify the newest credential as of the time of its entry in the log."""
        if self.token is None or self.token_at is None:
            return
        try:
            at = parse_time(self.token_at)
            verified = credential.verify(self.token, trust, at=at)
        except AgentguardError as error:
            self.credential = f"does not verify: {error}"
            return
        until = timestamp(datetime.fromtimestamp(verified.expires_at, UTC))
        self.credential = f"verifies: {verified.profile.type}, until {until}"

    def as_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints of an instance."""
        return {
            "agent": self.uri,
            "since": self.since,
            "credential": self.credential,
            "last_call": self.last_call,
            "allow": self.decisions["allow"],
            "deny": self.decisions["deny"],
            "delegations": [delegation.as_json() for delegation in self.delegations],
        }


@dataclass(slots=True)
class AgentRecord:
    """An agent: its name, its table in the configuration (None without one), its instances."""

    name: str
    table: AgentConfig | None
    instances: list[Instance] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints of an agent."""
        table = self.table
        return {
            "name": self.name,
            "configured": table is not None,
            "type": table.type if table else None,
            "owner": table.owner if table else None,
            "authority": table.authority if table else None,
            "max_scope": None
            if table is None or table.max_scope is None
            else sorted(table.max_scope),
            "roles": list(table.roles) if table else None,
            "instances": len(self.instances),
            "last_call": self.last_call,
            "allow": self.count("allow"),
            "deny": self.count("deny"),
        }

    def count(self, decision: str) -> int:
        """Count the calls of all instances that were decided so."""
        return sum(instance.decisions[decision] for instance in self.instances)

    @property
    def last_call(self) -> str | None:
        """The time of the newest call of any instance."""
        return max((i.last_call for i in self.instances if i.last_call), default=None)


def load(location: Location) -> list[AgentRecord]:
    """Return the agents of the configuration, then those of the log alone.

    An instance belongs to the agent that its URI names. Raises ``StorageError``.
    """
    tables = location.config.agents if location.config is not None else {}
    agents = {name: AgentRecord(name, table) for name, table in tables.items()}
    for instance in _instances(History(location.reader()).rows(outcomes=False)):
        name = credential.agent_name(instance.uri) or instance.uri
        agents.setdefault(name, AgentRecord(name, None)).instances.append(instance)
    return list(agents.values())


def find(agents: Sequence[AgentRecord], name: str) -> AgentRecord | None:
    """Return the agent of a name, or the agent with those instances alone that a name means.

    An instance's name is its URI or its short name, as in ``agent:assistant:Zq3x``. None where
    there is no such agent.
    """
    alias = credential.parse_alias(name)
    spellings = {name, alias[1]} if alias is not None else {name}
    for agent in agents:
        if agent.name == name:
            return agent
        instances = [
            instance
            for instance in agent.instances
            if {instance.uri, credential.agent_alias(instance.uri)} & spellings
        ]
        if instances:
            return AgentRecord(agent.name, agent.table, instances)
    return None


def _instances(rows: Iterable[Row]) -> Iterable[Instance]:
    instances: dict[str, Instance] = {}
    for row in rows:
        if row.agent is None or row.kind not in {"identity", "call"}:
            continue
        instance = instances.setdefault(row.agent, Instance(row.agent, row.at))
        if isinstance(row.entry, IdentityEntry):
            instance.token, instance.token_at = row.entry.credential, row.at
        elif row.decision is not None:
            instance.decisions[row.decision] += 1
            instance.last_call = row.at
    return instances.values()
