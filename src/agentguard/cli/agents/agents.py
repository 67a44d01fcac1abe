"""``agentguard agents``: the agents of the configuration, and their instances in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from agentguard.audit.entry import parse_time
from agentguard.call.invocation import timestamp
from agentguard.cli.agents import delegations
from agentguard.cli.agents.delegations import Live
from agentguard.cli.audit.history import History
from agentguard.cli.audit.row import Row
from agentguard.cli.lazy import Group
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.location import Location
from agentguard.cli.terminal.options import (
    AnchorOption,
    ConfigOption,
    JsonOption,
    NoteOption,
    StateOption,
    TrustOption,
)
from agentguard.domain import administration
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.passphrase import passphrase_of
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument

app = typer.Typer(no_args_is_help=True, cls=Group)


@dataclass(slots=True)
class Instance:
    """An agent instance as the log shows it.

    ``credential`` says of its newest credential whether it verifies, once ``check`` was called.
    """

    uri: str
    since: str | None
    token: str | None = None
    token_at: str | None = None
    decisions: Counter[str] = field(default_factory=Counter)
    last_call: str | None = None
    credential: str = "none in the log"
    delegations: list[Live] = field(default_factory=list)

    def check(self, trust: TrustDocument) -> None:
        """Verify the newest credential as of its entry in the log."""
        if self.token is None or self.token_at is None:
            return
        try:
            at = parse_time(self.token_at)
            held = credential.verify(self.token, trust, at=at)
        except AgentguardError as error:
            self.credential = f"does not verify: {error}"
            return
        until = timestamp(datetime.fromtimestamp(held.expires_at, UTC))
        self.credential = f"verifies: {held.profile.type}, until {until}"

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of an instance."""
        return {
            "agent": self.uri,
            "since": self.since,
            "credential": self.credential,
            "last_call": self.last_call,
            "allow": self.decisions["allow"],
            "deny": self.decisions["deny"],
            "delegations": [live.as_json() for live in self.delegations],
        }


@dataclass(slots=True)
class Known:
    """An agent name: its table in the configuration, if it has one, and its instances."""

    name: str
    configured: AgentConfig | None
    instances: list[Instance] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of an agent."""
        table = self.configured
        return {
            "name": self.name,
            "configured": table is not None,
            "type": table.profile.type if table else None,
            "owner": table.profile.owner if table else None,
            "authority": table.authority if table else None,
            "max_scope": sorted(table.max_scope or ()) if table else None,
            "roles": list(table.roles) if table else None,
            "instances": len(self.instances),
            "last_call": self.last_call,
            "allow": self.count("allow"),
            "deny": self.count("deny"),
        }

    def count(self, decision: str) -> int:
        """Count the calls of all instances with one decision."""
        return sum(instance.decisions[decision] for instance in self.instances)

    @property
    def last_call(self) -> str | None:
        """The time of the newest call of any instance."""
        return max((i.last_call for i in self.instances if i.last_call), default=None)


@app.command("list")
def list_agents(
    *, config: ConfigOption = None, state: StateOption = None, json: JsonOption = False
) -> None:
    """List the agents.

    Those of the configuration, and those seen in the log. With --json, one object a line.
    """
    known = _known(location.locate(config, state))
    if json:
        for agent in known:
            screen.json_line(agent.as_json())
        return
    names = ("agent", "type", "authority", "instances", "allow", "deny", "last call")
    screen.columns(names, ((_cells(agent), _note(agent)) for agent in known))


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URI",
            help="An agent's name, or one instance: its URI, or its short name as in "
            "assistant:Zq3x.",
        ),
    ],
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Show one agent, its instances and what they are lent.

    Their newest credentials are verified, each as of its entry in the log; of the delegations those
    are shown that have not expired.
    """
    log = location.trusted_log(config, state, anchor, trust)
    agent = _named(_known(log.location), name)
    for instance in agent.instances:
        instance.check(log.trust.document)
        instance.delegations = delegations.live(log.location, log.trust.document, instance.uri)
    if json:
        instances = [instance.as_json() for instance in agent.instances]
        screen.json_line({**agent.as_json(), "instances": instances})
    else:
        _draw(agent)
    if not log.trust.outside:
        screen.warn(f"UNTRUSTED KEY: credentials are checked with {log.trust.source}")


@app.command("revoke")
def revoke(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URI", help="An agent's name, or one instance: its URI or short name."
        ),
    ],
    *,
    note: NoteOption,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Let an agent, or one instance, act no more.

    Its next call is denied in every process on the state, and so is that of every agent to which it
    has handed something on. It is signed with the admin key, logged, and can't be taken back: a
    name that is revoked stays so.
    """
    settings = location.load_own(config)
    revoked = f"agent:{name.removeprefix('agent:')}"
    if revoked.removeprefix("agent:") not in settings.agents:
        revoked = _revocable(_named(_known(location.locate(config)), name), name)
    recorded = administration.revoke(
        settings, passphrase_of(settings), revoked, note=note, now=times.now()
    )
    screen.recorded(f"revoked: {revoked}", {"revoked": revoked}, recorded, json=json)


def _known(where: Location) -> list[Known]:
    """Gather the agents, those of the configuration first; an instance's name is its URI's."""
    tables = where.config.agents if where.config is not None else {}
    known = {name: Known(name, table) for name, table in tables.items()}
    for instance in _instances(History(where.reader()).rows(outcomes=False)):
        name = credential.agent_name(instance.uri) or instance.uri
        known.setdefault(name, Known(name, None)).instances.append(instance)
    return list(known.values())


def _named(known: list[Known], name: str) -> Known:
    named = credential.parse_alias(name)
    wanted = {name, named[1]} if named is not None else {name}
    for agent in known:
        if agent.name == name:
            return agent
        found = [i for i in agent.instances if {i.uri, credential.agent_alias(i.uri)} & wanted]
        if found:
            return Known(agent.name, agent.configured, found)
    names = ", ".join(agent.name for agent in known) or "none"
    raise ConfigError(f"there is no agent {name}; known: {names}", code="agent.unknown")


def _revocable(agent: Known, name: str) -> str:
    """Return the name that cuts off what was asked for: a short name identifies nothing."""
    if agent.name == name.removeprefix("agent:"):
        return f"agent:{agent.name}"
    if len(agent.instances) == 1:
        return agent.instances[0].uri
    found = ", ".join(instance.uri for instance in agent.instances)
    raise ConfigError(f"{name} may be {found}: give the URI", code="agent.unknown")


def _instances(rows: Iterable[Row]) -> Iterable[Instance]:
    instances: dict[str, Instance] = {}
    for row in rows:
        if row.agent is None or row.kind not in {"identity", "authorization"}:
            continue
        instance = instances.setdefault(row.agent, Instance(row.agent, row.at))
        if row.kind == "identity":
            instance.token, instance.token_at = row.credential, row.at
        elif row.decision is not None:
            instance.decisions[row.decision] += 1
            instance.last_call = row.at
    return instances.values()


def _cells(agent: Known) -> tuple[str | Text, ...]:
    table = agent.configured
    return (
        agent.name if table else screen.barred(agent.name),
        table.profile.type if table else "",
        table.authority if table else "",
        str(len(agent.instances)),
        str(agent.count("allow")),
        str(agent.count("deny")),
        times.shown(agent.last_call),
    )


def _note(agent: Known) -> str:
    table = agent.configured
    if table is None:
        return "in the log only, not configured here"
    roles = f" (roles: {' '.join(table.roles)})" if table.roles else ""
    return f"scope: {' '.join(sorted(table.scope or ())) or 'none'}{roles}"


def _draw(agent: Known) -> None:
    table = agent.configured
    if table is None:
        screen.item("in the log only, not configured here: ", agent.name)
    else:
        screen.sheet(
            (
                ("agent", agent.name),
                ("type", table.profile.type),
                ("owner", table.profile.owner or "none named"),
                ("authority", table.authority),
                ("max_scope", " ".join(sorted(table.max_scope or ())) or "none"),
                ("roles", " ".join(table.roles) or "none"),
                ("scope", " ".join(sorted(table.scope or ())) or "none"),
            )
        )
    if not agent.instances:
        screen.line()
        screen.line("no instance has been seen")
    for instance in agent.instances:
        _draw_instance(instance)


def _draw_instance(instance: Instance) -> None:
    allowed, denied = instance.decisions["allow"], instance.decisions["deny"]
    screen.line()
    screen.sheet(
        (
            ("instance", credential.agent_alias(instance.uri)),
            ("URI", instance.uri),
            ("credential", instance.credential),
            ("calls", f"{allowed} allowed, {denied} denied"),
            ("last call", times.shown(instance.last_call) or "none"),
            *(("delegation", live.said()) for live in instance.delegations),
        )
    )
