"""Who may act and lend, as a configuration says: agents, roles, principals, and the hand-overs.

The tables ``[agents]``, ``[roles]``, ``[principals]`` and ``[delegation]`` end here as values; the
whole file is ``__init__.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import AgentProfile


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``[agents.NAME]``. ``max_scope`` None means everything, which only an ephemeral guard has."""

    profile: AgentProfile
    authority: Literal["own", "delegated"]
    max_scope: frozenset[str] | None
    roles: tuple[str, ...] = ()
    of_roles: frozenset[str] = frozenset()
    """What the roles allow."""

    delegators: frozenset[str] | None = None
    """The agents that may hand work on to it (``[delegation]``); None: nothing is said of that."""

    @property
    def scope(self) -> frozenset[str] | None:
        """All that it may ever do, by itself or under a delegation; None is everything."""
        return None if self.max_scope is None else self.max_scope | self.of_roles

    def require_delegator(self, agent: str | None) -> None:
        """Raise ``DelegationError`` (``delegation.delegatee``) unless ``agent`` may hand work on.

        ``agent`` is the name of who hands it on to this one; to itself it may always.
        """
        name = self.profile.name
        if self.delegators is not None and agent not in {name, *self.delegators}:
            message = f"{agent} may not hand work on to {name}: [delegation] does not say so"
            raise DelegationError(message, code="delegation.delegatee")


@dataclass(frozen=True, slots=True)
class PrincipalConfig:
    """``[principals.NAME]``: the roles of a user, and what they allow to delegate."""

    roles: tuple[str, ...]
    scope: frozenset[str]


def read_role(table: Table) -> frozenset[str]:
    """Read what a role of ``[roles]`` allows; raises ``ConfigError``, as all here do."""
    scope = table.scope("scope")
    table.done()
    return scope


def read_principals(
    root: Table, roles: Mapping[str, frozenset[str]]
) -> Mapping[str, PrincipalConfig]:
    """Read ``[principals]``; ``roles`` are what each role allows."""
    known: dict[str, PrincipalConfig] = {}
    for name, table in root.tables("principals"):
        table.principal("", name)
        known[name] = PrincipalConfig(*_roles(table, roles))
        table.done()
    return known


def _roles(
    table: Table, known: Mapping[str, frozenset[str]]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Read which of the ``[roles]`` somebody has, and what they allow together."""
    named = tuple(sorted(set(table.texts("roles", ()))))
    for role in named:
        if role not in known:
            raise table.mistake("roles", f"names of [roles]: {', '.join(sorted(known)) or 'none'}")
    return named, frozenset[str]().union(*(known[role] for role in named))


def read_delegatees(root: Table) -> Mapping[str, frozenset[str]]:
    """Read ``[delegation]``: each agent, with those to whom it may hand work on."""
    table, agents = root.table("delegation"), root.table("agents").names()
    delegatees = {name: table.texts(name, ()) for name in table.names()}
    for name, to in delegatees.items():
        for agent in (name, *to):
            if agents and agent not in agents:
                known = ", ".join(sorted(agents))
                raise ConfigError(f"{table.name(name)}: {agent!r} is none of [agents]: {known}")
    return {name: frozenset(to) for name, to in delegatees.items()}


def delegators_of(
    agent: str, delegatees: Mapping[str, frozenset[str]] | None
) -> frozenset[str] | None:
    """Return the agents that may hand work on to ``agent``; None where nothing says so."""
    if delegatees is None:
        return None
    return frozenset(name for name, to in delegatees.items() if agent in to)


def read_agent(
    name: str,
    table: Table,
    known: Mapping[str, frozenset[str]],
    delegators: frozenset[str] | None,
) -> AgentConfig:
    """Read ``[agents.NAME]``; ``known`` are the roles, ``delegators`` who may hand on to it."""
    kind = table.text("type", "agent")
    owner, version = table.text("owner", "") or None, table.text("version", "") or None
    if owner is not None:
        table.principal("owner", owner)
    try:
        profile = AgentProfile(name, kind, owner, version)
    except ConfigError as error:
        raise ConfigError(f"{table.name('')}: {error}") from error
    roles, of_roles = _roles(table, known)
    config = AgentConfig(
        profile,
        table.choice("authority", ("own", "delegated"), "delegated"),
        table.scope("max_scope"),
        roles,
        of_roles,
        delegators,
    )
    table.done()
    return config
