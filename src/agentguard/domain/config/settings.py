"""The value of a whole configuration, with the look-ups that a guard needs.

``file.py`` reads the value from a file or from the tables of a program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.approvals.roster import Roster
from agentguard.approvals.store import Limits
from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import Path as InputPath
from agentguard.delegation import grant
from agentguard.delegation.grant import Assurance
from agentguard.domain.config.agents import AgentConfig, PrincipalConfig, delegators_of
from agentguard.domain.config.policy import PolicyConfig
from agentguard.domain.config.secrets import SecretConfig
from agentguard.domain.config.server import ClientConfig, ServerConfig
from agentguard.domain.config.spelling import closest_name, closest_scope
from agentguard.domain.config.tools import ToolConfig
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.principal import require_principal
from agentguard.paths import Folder
from agentguard.telemetry.settings import Settings

if TYPE_CHECKING:
    from agentguard.domain.config.issuers import IssuerConfig
    from agentguard.domain.config.mcp import McpConfig
    from agentguard.domain.config.service import ServiceConfig

NO_DOMAIN: Final = "ephemeral.invalid"
"""The trust domain of a configuration that names none, such as that of a guard in memory."""

DIRECTORY_SECONDS: Final = 60.0
"""The default of ``directory_seconds``."""

EXPIRING_SECONDS: Final = 300
"""The default of ``[approvals] expiring_seconds``."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; ``encoded`` is the canonical JSON of its tables, for the log."""

    source: str
    base: Path
    trust_domain: str
    state: Path
    anchor: Path | None
    passphrase_file: Path | None
    policy: PolicyConfig | None
    agents: Mapping[str, AgentConfig] = field(default_factory=dict)
    lists_agents: bool = False
    """Whether there is a table ``[agents]``; without one, a guard in memory has any agent."""

    role_scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """``[roles]``: the scopes that each role allows."""

    principals: Mapping[str, PrincipalConfig] | None = None
    """``[principals]``; None without that table."""

    assurance: Assurance = "application"
    """``[principals] assurance``: with ``oidc``, a principal has to come with a token."""

    principals_function: str | None = None
    """``principals`` as ``package.module:callable``, from a principal to roles or None.

    Without the table and the function, anybody may delegate any scope.
    """

    owners_function: str | None = None
    """``owners`` as ``package.module:callable``, from an agent's name to a principal or None."""

    directory_seconds: float = DIRECTORY_SECONDS
    """How long the guard caches an answer of these functions, in seconds."""

    delegatees: Mapping[str, frozenset[str]] | None = None
    """``[delegation]``: the agents to which each agent may delegate; None without that table."""

    tools: Mapping[str, ToolConfig] = field(default_factory=dict)
    denies_unlisted: bool = False
    """``[tools] unlisted = "deny"``: the calls of a tool without a table are denied."""

    paths: Mapping[str, Folder] = field(default_factory=dict)
    """``[paths]``: the folder of each argument that names a file, for every tool."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """``[aliases]``: the name of a tool in the policy, by the tool's own name."""

    roster: Roster = field(default_factory=Roster)
    limits: Limits = field(default_factory=Limits)
    on_request: str | None = None
    """The function, as ``package.module:callable``, that is called with each request."""

    on_expiring: str | None = None
    """The function that is called ``expiring_seconds`` before the end of a request."""

    on_expired: str | None = None
    """The function that is called with each request that has expired."""

    expiring_seconds: int = EXPIRING_SECONDS
    approver_roles: str | None = None
    """The function, as ``package.module:callable``, that returns a principal's roles."""

    redactions: Mapping[str, tuple[Redaction, ...]] = field(default_factory=dict)
    secrets: Mapping[str, SecretConfig] = field(default_factory=dict)
    """``[secrets]``: where each secret is kept, and the tools that may have the secret."""
    server: ServerConfig | None = None
    issuers: Mapping[str, IssuerConfig] = field(default_factory=dict)
    """``[issuers]``: whose tokens count, and where the issuers' keys are."""
    clients: Mapping[str, ClientConfig] | None = None
    """``[clients]``, for ``agentguard serve``; None without that table."""

    service: ServiceConfig | None = None
    """``[service]``, for ``agentguard serve``; None without that table."""

    mcp: Mapping[str, McpConfig] = field(default_factory=dict)
    """``[mcp]``, for ``agentguard mcp``: the MCP servers behind gateways, by name."""

    telemetry: Settings = field(default_factory=Settings)
    encoded: bytes = b"{}"

    @property
    def tool_names(self) -> Mapping[str, str]:
        """The names of tools in the configuration, each with the place of the name there."""
        tables = {name: f"{self.source}: [tools.{name}]" for name in self.tools}
        redactions = {name: f"{self.source}: {name} in [redact]" for name in self.redactions}
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
        tools = self.tools.values()
        names = {name for tool in tools for name in (*(tool.attributes or ()), *(tool.gives or ()))}
        return frozenset({*((name,) for name in names), *(("paths", name) for name in self.paths)})

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope of an agent or a role in the configuration."""
        agents = (agent.scope for agent in self.agents.values() if agent.scope is not None)
        principals = (principal.scope for principal in self.principal_tables.values())
        return frozenset[str]().union(*agents, *principals)

    @property
    def principal_tables(self) -> Mapping[str, PrincipalConfig]:
        """The principals of ``[principals]``, none without that table."""
        return {} if self.principals is None else self.principals

    @property
    def client_tables(self) -> Mapping[str, ClientConfig]:
        """The clients of ``[clients]``, none without that table."""
        return {} if self.clients is None else self.clients

    def delegators(self, agent: str) -> frozenset[str] | None:
        """Return the agents that may delegate to ``agent``; None without ``[delegation]``."""
        return delegators_of(agent, self.delegatees)

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

    @property
    def lists_principals(self) -> bool:
        """Whether the configuration says which principals may delegate."""
        return self.principals is not None or self.principals_function is not None

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
        if self.principals is None:
            message = (
                f"{subject} can't delegate, because {self.principals_function} does not know this "
                "principal: correct the name, or let the function return roles for it"
            )
            return DelegationError(message, code="principal.unknown")
        candidate = closest_name(subject, self.principals)
        advice = f"did you mean {candidate}? Otherwise add" if candidate else "add"
        message = (
            f"{subject} can't delegate, because {self.file_name} does not list this principal: "
            f'{advice} [principals."{subject}"] with roles that allow the scope'
        )
        return DelegationError(message, code="principal.unknown")

    def require_unredacted(self) -> None:
        """Refuse an argument in ``show`` that ``[redact]`` redacts; raises ``ConfigError``."""
        for name, tool in self.tools.items():
            for pointer in self.redactions.get("*", ()) + self.redactions.get(name, ()):
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
        for pointer in self.redactions.get("*", ()) + self.redactions.get(spec.name, ()):
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
