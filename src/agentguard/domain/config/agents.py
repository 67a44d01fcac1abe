"""Who may act and delegate: ``[agents]``, ``[roles]``, ``[principals]`` and ``[delegation]``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agentguard.delegation.grant import Assurance
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.credential import AgentProfile
from agentguard.identity.principal import require_principal
from agentguard.spelling import did_you_mean
from agentguard.tables import Table, kinds, others, setting


@dataclass(frozen=True, slots=True)
class RoleConfig:
    """A role is a name for a list of scopes. Principals and agents have roles.

    ::

        [roles.writer]
        scope = ["files:read", "files:write"]
    """

    scope: frozenset[str] = setting(kinds.scope, default=frozenset[str]())
    """The scopes that the role allows."""


@dataclass(frozen=True, slots=True)
class PrincipalConfig:
    """With such a table, nobody lends an agent anything whom the tables do not list.

    Without one, the program alone says what somebody lends (docs/how-to/delegation.md).

    ::

        [principals."user:alice"]
        roles = ["writer"]
    """

    roles: tuple[str, ...] = setting(kinds.texts, default=())
    """The roles whose scopes the principal may lend."""

    scope: frozenset[str] = frozenset()
    """The scopes of these roles."""


@dataclass(frozen=True, slots=True)
class PrincipalsConfig:
    """The tables of the principals are in this one.

    ::

        [principals]
        assurance = "oidc"
    """

    assurance: Assurance = setting(kinds.choice("application", "oidc"), default="application")
    """What vouches for a principal: ``application``, the program's word; or ``oidc``, a token of
    an issuer (docs/how-to/users.md)."""

    tables: Mapping[str, PrincipalConfig] = others(lambda: PrincipalConfig)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """An agent that has no such table can't act (``agent.unknown``).

    ::

        [agents.assistant]
        type = "assistant"
        owner = "user:carol"
        version = "1.2"
        authority = "delegated"
        max_scope = ["files:read"]
        roles = ["writer"]
        conceals_secrets = true
    """

    name: str
    type: str = setting(kinds.text, default="agent")
    """A kind of agent, for the policy: ``input.agent.type``."""

    owner: str | None = setting(kinds.principal, default=None)
    """Who answers for the agent: the agent acts on its own for the owner."""

    version: str | None = setting(kinds.text, default=None)
    """The agent's version, for the log."""

    authority: Literal["own", "delegated"] = setting(
        kinds.choice("own", "delegated"), default="delegated"
    )
    """``own``: the agent may act without a delegation; ``delegated``: each call needs one."""

    max_scope: frozenset[str] | None = setting(kinds.scope, default=frozenset[str]())
    """The scopes that a tool may require of this agent, whatever a person lends; without the key,
    nothing. None, of an ephemeral guard alone, means every scope."""

    roles: tuple[str, ...] = setting(kinds.texts, default=())
    """Roles whose scopes are added to ``max_scope``."""

    conceals_secrets: bool = setting(kinds.boolean, default=True)
    """Whether the adapters take released secrets out of what the agent's model sees
    (docs/how-to/secrets.md#what-a-model-sees)."""

    role_scope: frozenset[str] = frozenset()
    """The scopes that the roles allow."""

    delegators: frozenset[str] | None = None
    """The agents that may delegate to this one (``[delegation]``); None without that table."""

    def __post_init__(self) -> None:
        _ = self.profile

    @property
    def profile(self) -> AgentProfile:
        """What a credential says of the agent."""
        return AgentProfile(self.name, self.type, self.owner, self.version)

    @property
    def scope(self) -> frozenset[str] | None:
        """The largest scope of the agent, of its own or delegated; None means every scope."""
        return None if self.max_scope is None else self.max_scope | self.role_scope

    def require_delegator(self, agent: str | None) -> None:
        """Raise ``DelegationError`` (``delegation.delegatee``) unless ``agent`` may delegate.

        ``agent`` is the name of an agent. An agent may always delegate to itself.
        """
        if self.delegators is not None and agent not in {self.name, *self.delegators}:
            message = (
                f"{agent} may not delegate to {self.name}: add {self.name} to the list of {agent} "
                "in [delegation] to allow it"
            )
            raise DelegationError(message, code="delegation.delegatee")


def known_principals(
    outer: Table, principals: PrincipalsConfig, scopes: Mapping[str, frozenset[str]]
) -> PrincipalsConfig:
    """Return ``[principals]`` with the scopes of the roles; raises ``ConfigError``."""
    tables = {}
    for name, one in principals.tables.items():
        table = outer.table(name)
        try:
            require_principal(name, "principal", ConfigError)
        except ConfigError as error:
            raise ConfigError(f"{table.name()}: {error}") from error
        tables[name] = PrincipalConfig(*_roles(table, one.roles, scopes))
    return replace(principals, tables=tables)


def known_agents(
    outer: Table,
    agents: Mapping[str, AgentConfig],
    scopes: Mapping[str, frozenset[str]],
    delegation: Mapping[str, frozenset[str]] | None,
    *,
    has_owners: bool,
) -> Mapping[str, AgentConfig]:
    """Return ``[agents]``, the table ``outer``, with the scopes of the roles and the delegators.

    With ``has_owners``, a function names the owners, and no table does. Raises ``ConfigError``.
    """
    known = {}
    for name, agent in agents.items():
        table = outer.table(name)
        if has_owners and agent.owner is not None:
            raise table.mistake("owner", "no owner here, for the function of owners names them")
        roles, scope = _roles(table, agent.roles, scopes)
        delegators = delegators_of(name, delegation)
        known[name] = replace(agent, roles=roles, role_scope=scope, delegators=delegators)
    return known


def _roles(
    table: Table, given: tuple[str, ...], scopes: Mapping[str, frozenset[str]]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the roles of an agent or a principal, and the scopes that they allow together."""
    roles = tuple(sorted(set(given)))
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


def require_delegatees(
    outer: Table, delegation: Mapping[str, frozenset[str]], agents: Collection[str]
) -> None:
    """Refuse a name in ``[delegation]``, the table ``outer``, that is none of ``agents``."""
    for name, to in delegation.items():
        for agent in (name, *sorted(to)):
            if agent not in agents:
                names = did_you_mean(agent, agents) or ", ".join(sorted(agents))
                message = f"{outer.name(name)}: {agent!r} is not one of [agents]: {names}"
                raise ConfigError(message.rstrip())


def delegators_of(
    agent: str, delegation: Mapping[str, frozenset[str]] | None
) -> frozenset[str] | None:
    """Return the agents that may delegate to ``agent``; None without ``[delegation]``."""
    if delegation is None:
        return None
    return frozenset(name for name, to in delegation.items() if agent in to)
