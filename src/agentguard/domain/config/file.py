"""agentguard.toml: read, checked, and turned into values.

A mistake is a ``ConfigError`` that names the file, the key and what was expected; an unknown key is
a mistake (``table.py``). Nothing here opens anything but the file itself: wiring is the guard's
affair.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from agentguard.approvals.request import Limits
from agentguard.approvals.roster import Approver, Roster
from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.delegation import grant
from agentguard.domain.config import agents as members
from agentguard.domain.config import policy as policies
from agentguard.domain.config import spelling
from agentguard.domain.config.agents import AgentConfig, PrincipalConfig
from agentguard.domain.config.policy import PolicyConfig
from agentguard.domain.config.table import Table
from agentguard.errors import (
    ConfigError,
    DecodeError,
    DelegationError,
    EncodeError,
    KeyMaterialError,
)
from agentguard.paths import Folder
from agentguard.signing import canonical
from agentguard.signing.keys import PublicKey
from agentguard.storage import files
from agentguard.telemetry.settings import ENDPOINT, RECEIVER
from agentguard.telemetry.settings import Settings as TelemetrySettings

FILE: Final = "agentguard.toml"
DEFAULT_ANCHOR: Final = "~/.local/state/agentguard"
NO_DOMAIN: Final = "ephemeral.invalid"
"""The trust domain where none is named, as for a guard in memory."""

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """``[tools.NAME]``: what the configuration says in place of the code; None: says nothing.

    ``origin`` and ``schema`` say nothing in its place: a tool that has others is refused.
    """

    requires: tuple[str, ...] | None = None
    resource: str | None = None
    attributes: Mapping[str, str] | None = None
    facts: str | None = None
    where: str = ""
    origin: str | None = None
    schema: str | None = None

    def over(self, spec: ToolSpec) -> ToolSpec:
        """Return ``spec`` with what this table says; raises ``ConfigError``.

        ``facts`` is imported only now: reading a configuration runs no application code.
        """
        return spec.overridden(
            requires=self.requires,
            resource=self.resource,
            attributes=self.attributes,
            facts=load_callable(self.facts, self.where) if self.facts else None,
            pinned_origin=self.origin,
            pinned_schema=self.schema,
        )


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
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
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
        return members.delegators_of(agent, self.delegatees)

    def lendable(self, subject: str, scope: Iterable[str] | None) -> tuple[str, ...]:
        """Return what ``subject`` is to lend, if its roles allow that; ``scope`` None is all of it.

        Raises ``DelegationError``: ``principal.malformed``, ``principal.unknown`` for one whom
        ``[principals]`` does not list, ``scope.malformed``, ``scope.exceeded`` for more than the
        roles allow, or all of it where they allow nothing.
        """
        grant.principal(subject)  # what is no name is not looked for in a table
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
            near = spelling.closest(subject, self.principals)
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
            for name in spec.in_resource:
                if redaction.cover(redacted, name):
                    message = (
                        f"{self.source}: redact: {redaction.dumps(pointer)} redacts the argument "
                        f"{name!r}, which the resource {spec.resource!r} of the tool {spec.name} "
                        "tells: a resource is signed and logged; take the argument out of it, or "
                        "do not redact it"
                    )
                    raise ConfigError(message)


def load(path: Path) -> Config:
    """Read ``agentguard.toml``.

    Raises ``ConfigError``: ``config.missing``, ``config.invalid``, ``config.exposed``,
    ``anchor.inside``.
    """
    config = parse(_read(path), source=str(path), base=path.absolute().parent)
    if config.policy is None:
        raise ConfigError(f"{path}: policy: expected a table with a path, found none")
    return config


def find(start: Path) -> Path:
    """Return the nearest ``agentguard.toml``, from ``start`` upwards; raises ``ConfigError``."""
    for folder in (start, *start.parents):
        path = folder / FILE
        if os.path.lexists(path) and not path.is_dir():  # what is no file is refused, not passed by
            return path
    message = f"there is no {FILE} in {start} or above it: run agentguard init there"
    raise ConfigError(message, code="config.missing")


def parse(tables: Mapping[str, Any], *, source: str, base: Path) -> Config:
    """Check the tables of a configuration; paths in it are relative to ``base``.

    Raises ``ConfigError`` (``config.invalid``, ``anchor.inside``).
    """
    root = Table(tables, source, "")
    trust_domain = root.text("trust_domain", NO_DOMAIN)
    if not _DOMAIN.match(trust_domain):
        raise root.mistake("trust_domain", "a domain name in lower case, as in 'acme.example'")
    anchor = root.text("anchor", DEFAULT_ANCHOR)
    keys = root.table("keys")
    passphrase_file = keys.text("passphrase_file", "")
    keys.done()
    resolved = partial(resolve, base)
    roles = {name: members.read_role(table) for name, table in root.tables("roles")}
    delegatees = members.read_delegatees(root) if "delegation" in tables else None
    approvals = root.table("approvals")
    config = Config(
        source=source,
        base=base,
        trust_domain=trust_domain,
        state=resolve(base, root.text("state", ".agentguard")),
        anchor=resolve(base, anchor) if anchor else None,
        passphrase_file=resolve(base, passphrase_file) if passphrase_file else None,
        policy=policies.read(root.table("policy"), resolved) if "policy" in tables else None,
        agents={
            name: members.read_agent(name, table, roles, members.delegators_of(name, delegatees))
            for name, table in root.tables("agents")
        },
        principals=members.read_principals(root, roles) if "principals" in tables else None,
        delegatees=delegatees,
        tools={name: _tool(table) for name, table in root.tables("tools")},
        paths=_folders(root.table("paths"), resolved),
        aliases=_aliases(root.table("aliases")),
        roster=_roster(root, approvals),
        limits=_limits(approvals),
        on_request=approvals.text("on_request", "") or None,
        redactions=_redactions(root.table("redact")),
        telemetry=_telemetry(root.table("telemetry") if "telemetry" in tables else None),
        encoded=_encoded(tables, source),
    )
    approvals.done()
    root.done()
    require_outside(config.anchor, config.state, f"{source}: anchor: ")
    return config


def require_outside(anchor: Path | None, state: Path, where: str = "") -> None:
    """Refuse an anchor inside the state, which would be rolled back with it.

    ``where`` begins the message. Raises ``ConfigError`` (``anchor.inside``).
    """
    if anchor is not None and is_inside(anchor, state):
        message = (
            f"{where}{anchor} lies inside the state {state}, for which it should vouch: name a "
            "folder outside it, or '' for none"
        )
        raise ConfigError(message, code="anchor.inside")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def load_callable(reference: str, where: str) -> Callable[..., Any]:
    """Import ``package.module:callable``; raises ``ConfigError``."""
    module_name, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        message = (
            f"{where}: {reference!r} can't be imported ({type(error).__name__}: {error}); "
            "expected 'package.module:callable', on Python's path"
        )
        raise ConfigError(message) from error
    if not callable(found):
        raise ConfigError(f"{where}: {reference!r} is not callable")
    return found  # type: ignore[no-any-return]


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  a guard in memory reads no file

    from agentguard.domain.config import rights  # noqa: PLC0415  likewise

    try:
        return tomllib.loads(rights.read(path).decode())
    except FileNotFoundError as error:
        message = f"there is no {path}: run agentguard init, or name the right file"
        raise ConfigError(message, code="config.missing") from error
    except OSError as error:
        raise ConfigError(files.unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text ({error.reason})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _aliases(table: Table) -> Mapping[str, str]:
    """Read ``[aliases]``; two tools can't be one to a policy."""
    aliases = {name: table.text(name) for name in table.names()}
    for name, alias in aliases.items():
        if not alias or alias in aliases or list(aliases.values()).count(alias) > 1:
            raise table.mistake(name, "a name that no other tool has")
    return aliases


def _roster(root: Table, approvals: Table) -> Roster:
    """Read ``[approvers]``: each a principal, with its OpenSSH public keys and its roles."""
    people: dict[str, Approver] = {}
    for name, table in root.tables("approvers"):
        principal = table.principal("principal", table.text("principal", f"user:{name}"))
        keys = table.texts("keys", ())
        try:
            found = tuple(PublicKey.from_openssh(key) for key in keys)
        except KeyMaterialError as error:
            raise ConfigError(f"{table.name('')}: {error}") from error
        if not found:
            raise table.mistake("keys", "a list of lines as in a file id_ed25519.pub, at least one")
        people[name] = Approver(name, principal, found, tuple(table.texts("roles", ())))
        table.done()
    try:
        return Roster(people, approvals.boolean("application", default=False))
    except ConfigError as error:
        raise ConfigError(f"{root.name('approvers')}: {error}") from error


def _limits(approvals: Table) -> Limits:
    usual = Limits()
    return Limits(
        approvals.count("pending_per_agent", usual.per_agent),
        approvals.count("pending_per_principal", usual.per_principal),
    )


def _tool(table: Table) -> ToolConfig:
    config = ToolConfig(
        requires=table.texts("requires", None),
        resource=table.text("resource", "") or None,
        attributes=table.mapping("attributes"),
        facts=table.text("facts", "") or None,
        where=table.name("facts"),
        origin=table.text("origin", "") or None,
        schema=table.text("schema", "") or None,
    )
    if config.schema is not None and not _SHA256.match(config.schema):
        message = (
            "the SHA-256 of a schema, 64 hex digits in lower case, as a denial (tool.changed) or "
            "agentguard doctor --graph MODULE:GRAPH names"
        )
        raise table.mistake("schema", message)
    table.done()
    return config


def _folders(table: Table, resolved: Callable[[str], Path]) -> Mapping[str, Folder]:
    """Read ``[paths]``: the folder that the path in an argument must not leave, by its name."""
    folders = {}
    for argument in table.names():
        try:
            folders[argument] = Folder(resolved(table.text(argument)))
        except OSError as error:
            raise table.mistake(argument, "a folder below the root of the file system") from error
    return folders


def _redactions(table: Table) -> Mapping[str, tuple[Redaction, ...]]:
    """Read ``[redact]``: JSON Pointers by the tool's name, ``*`` for every tool."""
    redactions: dict[str, tuple[Redaction, ...]] = {}
    for tool in table.names():
        try:
            redactions[tool] = tuple(map(redaction.parse, table.texts(tool, ())))
        except DecodeError as error:
            raise ConfigError(f"{table.name(tool)}: {error}") from error
    return redactions


def _telemetry(table: Table | None) -> TelemetrySettings:
    if table is None:
        return TelemetrySettings()
    endpoint, service = table.text("endpoint", ""), table.text("service_name", "")
    if endpoint and not ENDPOINT.match(endpoint):
        raise table.mistake("endpoint", RECEIVER)
    switches = ("metrics", "arguments", "results", "hash_users")
    on = {name: table.boolean(name, default=False) for name in switches}
    table.done()
    return TelemetrySettings(True, endpoint, service, **on)  # noqa: FBT003  it is there


def resolve(base: Path, text: str) -> Path:
    """Return a path of the configuration: relative to its file, ``~`` expanded."""
    try:
        return base / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text!r}: there is no such home directory") from error


def _encoded(tables: Mapping[str, Any], source: str) -> bytes:
    try:
        return canonical.dumps(dict(tables))
    except EncodeError as error:
        raise ConfigError(f"{source}: it holds a value that has no place in it: {error}") from error
