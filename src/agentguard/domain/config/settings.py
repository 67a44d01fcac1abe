"""The value of a whole configuration, and the questions that a guard asks of it.

``file.py`` reads the value from a file or from a program's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentguard.approvals.roster import Roster
from agentguard.approvals.store import Limits
from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.delegation import grant
from agentguard.domain.config.agents import AgentConfig, PrincipalConfig, delegators_of
from agentguard.domain.config.policy import PolicyConfig
from agentguard.domain.config.spelling import closest_name
from agentguard.domain.config.tools import ToolConfig
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.principal import require_principal
from agentguard.paths import Folder
from agentguard.telemetry.settings import Settings

NO_DOMAIN: Final = "ephemeral.invalid"
"""The trust domain where none is named, as for a guard in memory."""

DIRECTORY_SECONDS: Final = 60.0
"""The default of ``directory_seconds``."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; ``encoded`` is its canonical JSON, as written, for the log."""

    source: str
    base: Path
    trust_domain: str
    state: Path
    anchor: Path | None
    passphrase_file: Path | None
    policy: PolicyConfig | None
    agents: Mapping[str, AgentConfig] = field(default_factory=dict)
    role_scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """``[roles]``: the scopes that each role allows."""

    principals: Mapping[str, PrincipalConfig] | None = None
    """None without ``[principals]``."""

    principals_function: str | None = None
    """``principals`` as ``package.module:callable``, from a principal to roles or None.

    Without both, anybody may delegate what the program names.
    """

    owners_function: str | None = None
    """``owners`` as ``package.module:callable``, from an agent's name to a principal or None."""

    directory_seconds: float = DIRECTORY_SECONDS
    """How long an answer of these functions is kept."""

    delegatees: Mapping[str, frozenset[str]] | None = None
    """``[delegation]``: the agents to which each agent may delegate; None without that table."""

    tools: Mapping[str, ToolConfig] = field(default_factory=dict)
    paths: Mapping[str, Folder] = field(default_factory=dict)
    """``[paths]``: the folder of each argument that names a file, for every tool."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """``[aliases]``: the name of a tool in the policy, by the tool's own name."""

    roster: Roster = field(default_factory=Roster)
    limits: Limits = field(default_factory=Limits)
    on_request: str | None = None
    """The function, as ``package.module:callable``, that is called with each request."""

    approver_roles: str | None = None
    """The function, as ``package.module:callable``, that returns a principal's roles."""

    redactions: Mapping[str, tuple[Redaction, ...]] = field(default_factory=dict)
    telemetry: Settings = field(default_factory=Settings)
    encoded: bytes = b"{}"

    @property
    def tool_names(self) -> Mapping[str, str]:
        """The names of tools in the configuration, each with its place there."""
        tables = {name: f"{self.source}: [tools.{name}]" for name in self.tools}
        redactions = {name: f"{self.source}: {name} in [redact]" for name in self.redactions}
        aliases = {name: f"{self.source}: {name} in [aliases]" for name in self.aliases}
        names = {**redactions, **tables, **aliases}
        return {name: where for name, where in names.items() if name != "*"}

    def delegators(self, agent: str) -> frozenset[str] | None:
        """Return the agents that may delegate to ``agent``; None without ``[delegation]``."""
        return delegators_of(agent, self.delegatees)

    def delegable_scope(
        self,
        subject: str,
        scope: Iterable[str] | None,
        principal_of: Callable[[str], PrincipalConfig | None],
    ) -> tuple[str, ...]:
        """Return the scope that ``subject`` delegates, if the subject's roles allow that scope.

        ``scope`` None stands for all that the roles allow; ``principal_of`` returns the roles of a
        principal, None for an unknown one. Raises ``DelegationError``: ``principal.malformed``,
        ``principal.unknown``, ``scope.malformed``, ``scope.exceeded`` for more than the roles
        allow, or for all of it where the roles allow nothing.
        """
        require_principal(subject, "principal", DelegationError)
        if self.principals is None and self.principals_function is None:
            if scope is None:
                message = (
                    f"say which scope {subject} lends: {self.source} has no [principals] whose "
                    "roles would say so"
                )
                raise DelegationError(message, code="scope.malformed")
            return grant.parse_scopes(scope)
        principal = principal_of(subject)
        if principal is None:
            raise self._unknown(subject)
        request = grant.parse_scopes(principal.scope if scope is None else scope)
        excess = [name for name in request if name not in principal.scope]
        if excess or (scope is None and not request):
            message = (
                f"the roles of {subject} do not allow {' '.join(excess) or 'anything'}: see "
                f"[principals] and [roles] in {self.source}"
            )
            raise DelegationError(message, code="scope.exceeded")
        return request

    def _unknown(self, subject: str) -> DelegationError:
        if self.principals is None:
            message = f"{subject} lends nothing: {self.principals_function} knows no such principal"
            return DelegationError(message, code="principal.unknown")
        candidate = closest_name(subject, self.principals)
        advice = f"is {candidate} meant? Else add" if candidate else "add"
        message = (
            f"{subject} lends nothing, for {self.source} does not list this principal: "
            f'{advice} [principals."{subject}"] with the roles that say what may be lent'
        )
        return DelegationError(message, code="principal.unknown")

    def require_redactable(self, spec: ToolSpec) -> None:
        """Refuse a tool whose resource, which is signed and logged, would show a redacted argument.

        A pointer into a part of an argument is allowed: a resource takes no argument that has
        parts. Raises ``ConfigError``.
        """
        for pointer in self.redactions.get("*", ()) + self.redactions.get(spec.name, ()):
            pointers = redaction.with_attributes([pointer], spec.attributes)
            for name in spec.resource_arguments:
                if redaction.cover(pointers, name):
                    message = (
                        f"{self.source}: redact: {redaction.dumps(pointer)} redacts the argument "
                        f"{name!r}, which the resource {spec.resource!r} of the tool {spec.name} "
                        "tells: a resource is signed and logged; take the argument out of it, or "
                        "do not redact it"
                    )
                    raise ConfigError(message)
