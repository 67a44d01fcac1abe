"""Who may act and delegate: ``[agents]``, ``[roles]``, ``[principals]`` and ``[delegation]``.

``file.py`` reads the other tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from agentguard.delegation.grant import Assurance
from agentguard.domain.config.spelling import did_you_mean
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import AgentProfile


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``[agents.NAME]``; ``max_scope`` None, of an ephemeral guard alone, means every scope."""

    profile: AgentProfile
    authority: Literal["own", "delegated"]
    max_scope: frozenset[str] | None
    roles: tuple[str, ...] = ()
    role_scope: frozenset[str] = frozenset()
    """The scopes that the roles allow."""

    delegators: frozenset[str] | None = None
    """The agents that may delegate to this one (``[delegation]``); None without that table."""

    conceals_secrets: bool = True
    """Whether the adapters take released secrets out of the results that the agent's model sees."""

    @property
    def scope(self) -> frozenset[str] | None:
        """The largest scope of the agent, of its own or delegated; None means every scope."""
        return None if self.max_scope is None else self.max_scope | self.role_scope

    def require_delegator(self, agent: str | None) -> None:
        """Raise ``DelegationError`` (``delegation.delegatee``) unless ``agent`` may delegate.

        ``agent`` is the name of an agent. An agent may always delegate to itself.
        """
        name = self.profile.name
        if self.delegators is not None and agent not in {name, *self.delegators}:
            message = (
                f"{agent} may not delegate to {name}: add {name} to the list of {agent} in "
                "[delegation] to allow it"
            )
            raise DelegationError(message, code="delegation.delegatee")


@dataclass(frozen=True, slots=True)
class PrincipalConfig:
    """``[principals.NAME]``: the roles of a user, and the scopes that the user may delegate."""

    roles: tuple[str, ...]
    scope: frozenset[str]


def read_role(table: Table) -> frozenset[str]:
    """Return the scopes that a role of ``[roles]`` allows; raises ``ConfigError``."""
    scope = table.scope("scope", frozenset[str]())
    table.reject_unknown()
    return scope


def read_assurance(root: Table) -> Assurance:
    """Read ``[principals] assurance``: the least that vouches for a principal.

    Raises ``ConfigError``.
    """
    return root.table("principals").choice("assurance", ("application", "oidc"), "application")


def read_principals(
    root: Table, roles: Mapping[str, frozenset[str]]
) -> Mapping[str, PrincipalConfig]:
    """Read ``[principals]``; ``roles`` has the scopes of each role. Raises ``ConfigError``."""
    principals: dict[str, PrincipalConfig] = {}
    outer = root.table("principals")
    for name in outer.names():
        if name == "assurance":
            continue
        table = outer.table(name, "assurance")
        table.principal("", name)
        principals[name] = PrincipalConfig(*_roles(table, roles))
        table.reject_unknown()
    return principals


def _roles(
    table: Table, scopes: Mapping[str, frozenset[str]]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the roles of an agent or a principal, and the scopes that they allow together."""
    roles = tuple(sorted(set(table.texts("roles", ()))))
    for role in roles:
        if role not in scopes:
            names = ", ".join(sorted(scopes)) or "none"
            meant = did_you_mean(role, scopes)
            message = f"{table.name('roles')}: {role!r} is not one of [roles]: {meant or names}"
            raise ConfigError(message.rstrip())
    return roles, frozenset[str]().union(*(scopes[role] for role in roles))


def unknown_agent(source: str, name: str, agents: Iterable[str]) -> ConfigError:
    """Return the error (``agent.unknown``) for a name without a table in ``source``."""
    names = ", ".join(sorted(agents)) or "none"
    meant = did_you_mean(str(name), agents)  # a program may pass another object
    message = (
        f"{source}: there is no [agents.{name}]; known agents: {names}; "
        f"{meant}{'Otherwise add' if meant else 'correct the name, or add'} the table"
    )
    return ConfigError(message, code="agent.unknown")


def read_delegatees(root: Table) -> Mapping[str, frozenset[str]]:
    """Read ``[delegation]``: each agent, with the agents to which it may delegate."""
    table, agents = root.table("delegation"), root.table("agents").names()
    lists_agents = "agents" in root.names()
    delegatees = {name: table.texts(name, ()) for name in table.names()}
    for name, to in delegatees.items():
        for agent in (name, *to):
            if lists_agents and agent not in agents:
                names = did_you_mean(agent, agents) or ", ".join(sorted(agents))
                message = f"{table.name(name)}: {agent!r} is not one of [agents]: {names}"
                raise ConfigError(message.rstrip())
    return {name: frozenset(to) for name, to in delegatees.items()}


def delegators_of(
    agent: str, delegatees: Mapping[str, frozenset[str]] | None
) -> frozenset[str] | None:
    """Return the agents that may delegate to ``agent``; None without ``[delegation]``."""
    if delegatees is None:
        return None
    return frozenset(name for name, to in delegatees.items() if agent in to)


def read_agent(
    name: str,
    table: Table,
    scopes: Mapping[str, frozenset[str]],
    delegators: frozenset[str] | None,
    *,
    has_owner: bool,
) -> AgentConfig:
    """Read ``[agents.NAME]``; ``scopes`` are those of each role. Raises ``ConfigError``.

    ``has_owner`` says whether the table may name an owner: it may not beside ``owners``.
    """
    kind = table.text("type", "agent")
    owner, version = table.optional("owner"), table.optional("version")
    if owner is not None:
        if not has_owner:
            raise table.mistake("owner", "no owner here, for the function of owners names them")
        table.principal("owner", owner)
    try:
        profile = AgentProfile(name, kind, owner, version)
    except ConfigError as error:
        raise ConfigError(f"{table.name('')}: {error}") from error
    roles, role_scope = _roles(table, scopes)
    config = AgentConfig(
        profile,
        table.choice("authority", ("own", "delegated"), "delegated"),
        table.scope("max_scope", frozenset[str]()),
        roles,
        role_scope,
        delegators,
        table.boolean("conceals_secrets", default=True),
    )
    table.reject_unknown()
    return config
