"""A whole configuration: the tables of agentguard.toml, with the look-ups that a guard needs.

``file.py`` reads the value from a file or from the tables of a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from agentguard.approvals.roster import Roster
from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import Path as InputPath
from agentguard.delegation import grant
from agentguard.delegation.grant import Assurance
from agentguard.domain.config.agents import (
    AgentConfig,
    PrincipalConfig,
    PrincipalsConfig,
    RoleConfig,
    delegators_of,
)
from agentguard.domain.config.approvals import ApprovalsConfig, ApproverConfig
from agentguard.domain.config.policy import PolicyConfig, policy
from agentguard.domain.config.tools import ToolsConfig, folder, pointers
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.principal import require_principal
from agentguard.paths import Folder
from agentguard.spelling import closest_name, closest_scope
from agentguard.tables import Table, below, each, kinds, named, setting
from agentguard.tables.kinds import Kind
from agentguard.telemetry.settings import Settings

if TYPE_CHECKING:
    from agentguard.domain.config.clients import ClientConfig
    from agentguard.domain.config.issuers import IssuerConfig
    from agentguard.domain.config.mcp import McpConfig
    from agentguard.domain.config.secrets import SecretConfig
    from agentguard.domain.config.server import ServerConfig
    from agentguard.domain.config.service import ServiceConfig

NO_DOMAIN: Final = "ephemeral.invalid"
"""The trust domain of a configuration that names none, such as that of a guard in memory."""

DEFAULT_ANCHOR: Final = "~/.local/state/agentguard"

_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class KeysConfig:
    """Private keys rest encrypted.

    A passphrase in the variable ``AGENTGUARD_PASSPHRASE`` counts more than the file
    (docs/how-to/keys.md).

    ::

        [keys]
        passphrase_file = "~/.config/agentguard/acme.passphrase"
    """

    passphrase_file: Path | None = setting(kinds.file, default=None)
    """A file with the passphrase, which this user alone can read."""


# a guard in memory has none of these tables, and imports none of their records


def _client() -> type[ClientConfig]:
    from agentguard.domain.config.clients import ClientConfig  # noqa: PLC0415

    return ClientConfig


def _issuer() -> type[IssuerConfig]:
    from agentguard.domain.config.issuers import IssuerConfig  # noqa: PLC0415

    return IssuerConfig


def _mcp() -> type[McpConfig]:
    from agentguard.domain.config.mcp import McpConfig  # noqa: PLC0415

    return McpConfig


def _secret() -> type[SecretConfig]:
    from agentguard.domain.config.secrets import SecretConfig  # noqa: PLC0415

    return SecretConfig


def _server() -> type[ServerConfig]:
    from agentguard.domain.config.server import ServerConfig  # noqa: PLC0415

    return ServerConfig


def _service() -> type[ServiceConfig]:
    from agentguard.domain.config.service import ServiceConfig  # noqa: PLC0415

    return ServiceConfig


def _anchor(table: Table, key: str) -> Path | None:
    return kinds.file.read(table, key) if kinds.any_text.read(table, key) else None


def _principals(table: Table, key: str) -> PrincipalsConfig | str:
    if isinstance(table.get(key), str):
        return kinds.text.read(table, key)
    return below(lambda: PrincipalsConfig).read(table, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """These keys stand before the first table.

    ::

        trust_domain = "acme.example"
        state = ".agentguard"
        anchor = "~/.local/state/agentguard"
        # principals = "acme.people:roles"
        # owners = "acme.people:owner"
        # directory_seconds = 60
    """

    source: str
    """The file."""

    base: Path
    """The folder of the file."""

    encoded: bytes = b"{}"
    """The canonical JSON of the tables, for the log."""

    lists_agents: bool = False
    """Whether there is a table ``[agents]``; without one, a guard in memory has any agent."""

    roster: Roster = field(default_factory=Roster)
    """``[approvers]``, and what ``[approvals]`` says of the application."""

    trust_domain: str = setting(
        kinds.text.where(
            lambda name: _DOMAIN.match(name) is not None,
            "a domain name in lower case, as in 'acme.example'",
        ),
        default=NO_DOMAIN,
    )
    """The name of the trust domain, in lower case: a part of the names of agents, of tokens and of
    the log. Only a guard in memory does without."""

    state: Path = setting(kinds.file, default=Path(".agentguard"))
    """The folder of keys, trust document and log, for this user alone."""

    anchor: Path | None = setting(Kind("string", "a folder", _anchor), default=Path(DEFAULT_ANCHOR))
    """A folder outside of ``state`` with a copy of the newest checkpoint, so that a log that was
    cut off is noticed; ``""`` is none."""

    owners: str | None = setting(kinds.text, default=None)
    """A function, ``package.module:callable``, from an agent's name to the agent's owner; then no
    ``[agents.NAME]`` has an ``owner`` (docs/how-to/principals.md)."""

    directory_seconds: float = setting(kinds.seconds, default=60.0)
    """For how long an answer of the functions ``owners`` and ``principals`` is kept."""

    keys: KeysConfig = setting(below(lambda: KeysConfig), default=KeysConfig())
    policy: PolicyConfig | None = setting(policy, default=None)
    roles: Mapping[str, RoleConfig] = setting(named(lambda: RoleConfig), default=_NONE)
    principals: PrincipalsConfig | str | None = setting(
        Kind("string", "a table, or a function", _principals, (lambda: PrincipalsConfig,)),
        default=None,
    )
    """The tables, or in their place a function, ``package.module:callable``: from a principal to
    the names of roles, or None for somebody unknown (docs/how-to/principals.md). Without either,
    anybody may delegate any scope."""

    agents: Mapping[str, AgentConfig] = setting(named(lambda: AgentConfig), default=_NONE)
    delegation: Mapping[str, frozenset[str]] | None = setting(
        each(kinds.texts.to(frozenset)), default=None
    )
    """With this table, an agent hands work on to the agents that it lists. Without it, an agent may
    hand work on to every other agent. Each NAME is an agent, with the agents to which it may hand
    work on.

    ::

        [delegation]
        assistant = []
    """

    tools: ToolsConfig = setting(below(lambda: ToolsConfig), default=ToolsConfig())
    aliases: Mapping[str, str] = setting(each(kinds.text), default=_NONE)
    """A tool's name in the policy and in this file, where the framework's own name is not to be
    used. Each NAME is a tool's own name.

    ::

        [aliases]
        mcp__files__read = "read_file"
    """

    paths: Mapping[str, Folder] = setting(each(folder), default=_NONE)
    """Folders that paths in arguments must not leave. The policy finds where a path leads, links
    followed, as ``input.paths.NAME`` (docs/reference/policy-document.md#paths). Each NAME is that
    of an argument, of every tool.

    ::

        [paths]
        path = "."
    """

    approvers: Mapping[str, ApproverConfig] = setting(named(lambda: ApproverConfig), default=_NONE)
    approvals: ApprovalsConfig = setting(below(lambda: ApprovalsConfig), default=ApprovalsConfig())
    redact: Mapping[str, tuple[Redaction, ...]] = setting(each(pointers), default=_NONE)
    """Arguments and results that the log does not show (docs/how-to/privacy.md): JSON Pointers for
    each tool NAME; ``*`` is every tool.

    ::

        [redact]
        read_file = ["/args/content"]
    """

    secrets: Mapping[str, SecretConfig] = setting(named(_secret), default=_NONE)
    telemetry: Settings = setting(below(lambda: Settings, present=True), default=Settings())
    server: ServerConfig | None = setting(below(_server), default=None)
    issuers: Mapping[str, IssuerConfig] = setting(named(_issuer), default=_NONE)
    service: ServiceConfig | None = setting(below(_service), default=None)
    clients: Mapping[str, ClientConfig] | None = setting(named(_client), default=None)
    mcp: Mapping[str, McpConfig] = setting(named(_mcp), default=_NONE)

    @property
    def tool_names(self) -> Mapping[str, str]:
        """The names of tools in the configuration, each with the place of the name there."""
        tables = {name: f"{self.source}: [tools.{name}]" for name in self.tools.tables}
        redactions = {name: f"{self.source}: {name} in [redact]" for name in self.redact}
        aliases = {name: f"{self.source}: {name} in [aliases]" for name in self.aliases}
        secrets = {
            tool: f"{self.source}: {tool} in [secrets.{name}]"
            for name, secret in self.secrets.items()
            for tool in secret.tools
        }
        names = {**secrets, **redactions, **tables, **aliases}
        return {name: where for name, where in names.items() if name != "*"}

    @property
    def given_names(self) -> frozenset[InputPath]:
        """The paths below ``input`` that the tables of tools and ``[paths]`` fill."""
        tools = self.tools.tables.values()
        names = {name for tool in tools for name in (*(tool.attributes or ()), *(tool.gives or ()))}
        return frozenset({*((name,) for name in names), *(("paths", name) for name in self.paths)})

    @property
    def role_scopes(self) -> Mapping[str, frozenset[str]]:
        """The scopes that each role allows."""
        return {name: role.scope for name, role in self.roles.items()}

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope of an agent or a role in the configuration."""
        agents = (agent.scope for agent in self.agents.values() if agent.scope is not None)
        principals = (principal.scope for principal in self.principal_tables.values())
        return frozenset[str]().union(*agents, *principals)

    @property
    def principal_tables(self) -> Mapping[str, PrincipalConfig]:
        """The principals of ``[principals]``, none without that table."""
        return self.principals.tables if isinstance(self.principals, PrincipalsConfig) else {}

    @property
    def assurance(self) -> Assurance:
        """``[principals] assurance``: with ``oidc``, a principal has to come with a token."""
        tables = self.principals
        return tables.assurance if isinstance(tables, PrincipalsConfig) else "application"

    @property
    def client_tables(self) -> Mapping[str, ClientConfig]:
        """The clients of ``[clients]``, none without that table."""
        return {} if self.clients is None else self.clients

    def delegators(self, agent: str) -> frozenset[str] | None:
        """Return the agents that may delegate to ``agent``; None without ``[delegation]``."""
        return delegators_of(agent, self.delegation)

    def delegable_scope(
        self,
        subject: str,
        scope: Iterable[str] | None,
        principal_of: Callable[[str], PrincipalConfig | None] | None,
    ) -> tuple[str, ...]:
        """Return the scope that ``subject`` delegates, if the subject's roles allow that scope.

        ``scope`` None means every scope that the roles allow. ``principal_of`` returns the roles of
        a principal, or None for an unknown principal; without the function, anybody may delegate
        any scope. Raises ``DelegationError``:
        ``principal.malformed``; ``principal.unknown``; ``scope.malformed``; ``scope.exceeded`` for
        a scope that the roles do not allow, and for None if the roles allow no scope.
        """
        require_principal(subject, "principal", DelegationError)
        if principal_of is None:
            if scope is None:
                message = (
                    f"name the scope that {subject} delegates, because {self.file_name} has no "
                    "[principals] with the roles of this principal"
                )
                raise DelegationError(message, code="scope.malformed")
            return grant.parse_scopes(scope)
        principal = principal_of(subject)
        if principal is None:
            raise self._unknown(subject)
        request = grant.parse_scopes(principal.scope if scope is None else scope)
        excess = [name for name in request if name not in principal.scope]
        if excess or (scope is None and not request):
            candidate = closest_scope(excess[0], principal.scope) if excess else None
            advice = f"did you mean {candidate}? See" if candidate is not None else "see"
            wanted = " ".join(excess) or "anything"
            message = (
                f"the roles of {subject} do not allow {wanted}: {advice} "
                f"[principals] and [roles] in {self.file_name}"
            )
            raise DelegationError(message, code="scope.exceeded")
        return request

    @property
    def file_name(self) -> str:
        """The name of the configuration file, without its folder, which no client learns."""
        return Path(self.source).name

    def require_server(self) -> ServerConfig:
        """Return ``[server]``; raises ``ConfigError`` without the table."""
        if self.server is None:
            message = f"{self.source}: server: expected a table [server] with a url, found none"
            raise ConfigError(message)
        return self.server

    def require_assurance(self, subject: str, assurance: Assurance | None) -> None:
        """Refuse an application's word for a principal where ``[principals]`` wants a token.

        Raises ``DelegationError`` (``principal.assurance``).
        """
        if self.assurance == "oidc" and assurance != "oidc":
            message = (
                f"{subject} has to come with a token of an issuer ([principals] assurance in "
                f"{self.file_name}): pass the token, guard.delegate(subject_token=...)"
            )
            raise DelegationError(message, code="principal.assurance")

    def _unknown(self, subject: str) -> DelegationError:
        if isinstance(self.principals, str):
            message = (
                f"{subject} can't delegate, because {self.principals} does not know this "
                "principal: correct the name, or let the function return roles for it"
            )
            return DelegationError(message, code="principal.unknown")
        candidate = closest_name(subject, self.principal_tables)
        advice = f"did you mean {candidate}? Otherwise add" if candidate else "add"
        message = (
            f"{subject} can't delegate, because {self.file_name} does not list this principal: "
            f'{advice} [principals."{subject}"] with roles that allow the scope'
        )
        return DelegationError(message, code="principal.unknown")

    def require_unredacted(self) -> None:
        """Refuse an argument in ``show`` that ``[redact]`` redacts; raises ``ConfigError``."""
        for name, tool in self.tools.tables.items():
            for pointer in self.redact.get("*", ()) + self.redact.get(name, ()):
                pointers = redaction.with_attributes([pointer], tool.attributes or {})
                for argument in tool.show:
                    if redaction.cover(pointers, argument):
                        message = (
                            f"{tool.place}: show names the argument {argument!r}, which "
                            f"{redaction.dumps(pointer)} in [redact] keeps out of the log: take it "
                            "out of one of them"
                        )
                        raise ConfigError(message)

    def require_redactable(self, spec: ToolSpec) -> None:
        """Refuse a tool whose resource, which is signed and logged, would show a redacted argument.

        A pointer to a part of an argument is allowed, because a resource contains no argument that
        has parts. Raises ``ConfigError``.
        """
        for pointer in self.redact.get("*", ()) + self.redact.get(spec.name, ()):
            pointers = redaction.with_attributes([pointer], spec.attributes)
            for name in spec.resource_arguments:
                if redaction.cover(pointers, name):
                    message = (
                        f"{self.source}: redact: {redaction.dumps(pointer)} redacts the argument "
                        f"{name!r}, which is part of the resource {spec.resource!r} of the tool "
                        f"{spec.name}, and a resource is signed and logged: remove the argument "
                        "from the resource, or from [redact]"
                    )
                    raise ConfigError(message)
