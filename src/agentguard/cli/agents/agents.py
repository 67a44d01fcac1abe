"""The group ``agentguard agents``: commands that list agents and show one of them.

How agents are gathered from the configuration and the log is in ``inventory.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from rich.text import Text

from agentguard.cli.agents import delegations, inventory
from agentguard.cli.agents.inventory import AgentRecord, Instance
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import (
    AS_JSON,
    CONFIG,
    LOG,
    STATE,
    Argument,
    LogOptions,
    command,
)
from agentguard.errors import ConfigError
from agentguard.identity import credential


@command(CONFIG, STATE, AS_JSON)
def list_agents(*, config: Path | None, state: Path | None, json: bool) -> None:
    """With --json, one object a line."""
    agents = inventory.load(location.locate(config, state))
    if json:
        for agent in agents:
            screen.json_line(agent.as_json())
        return
    names = ("agent", "type", "authority", "instances", "allow", "deny", "last call")
    screen.columns(names, ((_cells(agent), _note(agent)) for agent in agents))


@command(
    Argument(
        "name",
        "NAME|URI",
        "An agent's name, or one instance: its URI, or its short name as in assistant:Zq3x.",
    ),
    *LOG,
    AS_JSON,
)
def show(*, name: str, json: bool, **options: Unpack[LogOptions]) -> None:
    """The newest credential of each instance is verified as of its entry in the log. Only
    delegations that have not expired are shown.
    """
    log = location.trusted_log(**options)
    agent = _require(inventory.load(log.location), name)
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


def _require(agents: Sequence[AgentRecord], name: str) -> AgentRecord:
    agent = inventory.find(agents, name)
    if agent is None:
        names = ", ".join(agent.name for agent in agents) or "none"
        raise ConfigError(f"there is no agent {name}; known: {names}", code="agent.unknown")
    return agent


def _cells(agent: AgentRecord) -> tuple[str | Text, ...]:
    table = agent.table
    return (
        agent.name if table else screen.barred(agent.name),
        table.type if table else "",
        table.authority if table else "",
        str(len(agent.instances)),
        str(agent.count("allow")),
        str(agent.count("deny")),
        times.to_the_second(agent.last_call),
    )


def _note(agent: AgentRecord) -> str:
    table = agent.table
    if table is None:
        return "in the log only, not configured here"
    roles = f" (roles: {' '.join(table.roles)})" if table.roles else ""
    return f"scope: {_words(table.scope)}{roles}"


def _words(scope: frozenset[str] | None) -> str:
    if scope is None:
        return "every scope"
    return " ".join(sorted(scope)) or "none"


def _draw(agent: AgentRecord) -> None:
    table = agent.table
    if table is None:
        screen.item("in the log only, not configured here: ", agent.name)
    else:
        screen.sheet(
            (
                ("agent", agent.name),
                ("type", table.type),
                ("owner", "none named" if table.owner is None else table.owner),
                ("authority", table.authority),
                ("max_scope", _words(table.max_scope)),
                ("roles", " ".join(table.roles) or "none"),
                ("scope", _words(table.scope)),
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
            ("last call", times.to_the_second(instance.last_call) or "none"),
            *(("delegation", delegation.describe()) for delegation in instance.delegations),
        )
    )
