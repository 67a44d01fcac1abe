"""The value of a whole configuration, and the questions that a guard asks of it.

``file.py`` reads the value from a file or from a program's tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from agentguard.domain.config.spelling import closest
from agentguard.domain.config.tools import ToolConfig
from agentguard.errors import ConfigError, DelegationError
from agentguard.identity.principal import require_principal
from agentguard.paths import Folder
from agentguard.telemetry.settings import Settings

NO_DOMAIN: Final = "ephemeral.invalid"
"""The trust domain where none is named, as for a guard in memory."""


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
    principals: Mapping[str, PrincipalConfig] | None = None
    """None where there is no ``[principals]``: then anybody delegates what the program says."""

    delegatees: Mapping[str, frozenset[str]] | None = None
    """``[delegation]``: to whom each agent may hand work on; None where it is not there."""

    tools: Mapping[str, ToolConfig] = field(default_factory=dict)
    paths: Mapping[str, Folder] = field(default_factory=dict)
    """``[paths]``: the folder of each argument that names a file, for every tool that has it."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """``[aliases]``: the name that a policy knows, by the one with which a tool comes."""

    roster: Roster = field(default_factory=Roster)
    limits: Limits = field(default_factory=Limits)
    on_request: str | None = None
    """The function, as ``package.module:callable``, that is told of each request."""

    redactions: Mapping[str, tuple[Redaction, ...]] = field(default_factory=dict)
    telemetry: Settings = field(default_factory=Settings)
    encoded: bytes = b"{}"

    @property
    def tool_names(self) -> Mapping[str, str]:
        """The tools that it names, each with the place where it does."""
        tables = {name: f"{self.source}: [tools.{name}]" for name in self.tools}
        redacted = {name: f"{self.source}: {name} in [redact]" for name in self.redactions}
        aliased = {name: f"{self.source}: {name} in [aliases]" for name in self.aliases}
        named = {**redacted, **tables, **aliased}
        return {name: where for name, where in named.items() if name != "*"}

    def delegators(self, agent: str) -> frozenset[str] | None:
        """Return the agents that may hand work on to ``agent``; None where nothing says so."""
        return delegators_of(agent, self.delegatees)

    def lendable(self, subject: str, scope: Iterable[str] | None) -> tuple[str, ...]:
        """Return what ``subject`` is to lend, if its roles allow that; ``scope`` None is all of it.

        Raises ``DelegationError``: ``principal.malformed``, ``principal.unknown`` for one whom
        ``[principals]`` does not list, ``scope.malformed``, ``scope.exceeded`` for more than the
        roles allow, or all of it where they allow nothing.
        """
        require_principal(subject, "principal", DelegationError)
        if self.principals is None:
            if scope is None:
                message = (
                    f"say which scope {subject} lends: {self.source} has no [principals] whose "
                    "roles would say so"
                )
                raise DelegationError(message, code="scope.malformed")
            return grant.scopes(scope)
        known = self.principals.get(subject)
        if known is None:
            near = closest(subject, self.principals)
            meant = f"is {near} meant? Else add" if near else "add"
            message = (
                f"{subject} lends nothing, for {self.source} does not list this principal: {meant} "
                f'[principals."{subject}"] with the roles that say what may be lent'
            )
            raise DelegationError(message, code="principal.unknown")
        asked = grant.scopes(known.scope if scope is None else scope)
        more = [one for one in asked if one not in known.scope]
        if more or (scope is None and not asked):
            message = (
                f"the roles of {subject} do not allow {' '.join(more) or 'anything'}: see "
                f"[principals] and [roles] in {self.source}"
            )
            raise DelegationError(message, code="scope.exceeded")
        return asked

    def require_redactable(self, spec: ToolSpec) -> None:
        """Refuse a tool whose resource, which is signed and logged, would tell what is redacted.

        A pointer into an argument is no reason: a resource takes no argument that has parts.
        Raises ``ConfigError``.
        """
        for pointer in self.redactions.get("*", ()) + self.redactions.get(spec.name, ()):
            redacted = redaction.with_attributes([pointer], spec.attributes)
            for name in spec.resource_arguments:
                if redaction.cover(redacted, name):
                    message = (
                        f"{self.source}: redact: {redaction.dumps(pointer)} redacts the argument "
                        f"{name!r}, which the resource {spec.resource!r} of the tool {spec.name} "
                        "tells: a resource is signed and logged; take the argument out of it, or "
                        "do not redact it"
                    )
                    raise ConfigError(message)
