"""The checks of ``agentguard doctor`` on tools: those of the configuration beside those of the log.

The configuration does not list every tool, and a scope may stand in the code alone. So a check
warns only of a name that looks misspelt, and of a tool that nothing but the policy limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from agentguard.audit.find import search_entries
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.setup.finding import Finding
from agentguard.domain.config import Config
from agentguard.spelling import closest_name, key

_OF_A_GATEWAY: Final = "mcp:start"
"""How the call is named, also behind a prefix, by which an MCP gateway itself gets secrets."""


class ToolsOfLog(NamedTuple):
    """The tools that were called, and among these the tools that handed work on to an agent."""

    called: frozenset[str]
    handed_on: frozenset[str]


def read(reader: LogReader) -> ToolsOfLog:
    """Read the calls of a log whose entries were verified before; raises ``StorageError``."""
    by_id: dict[str | None, tuple[str, str]] = {}
    inside: list[tuple[str, str]] = []
    for located in search_entries(reader, CallEntry, Search()):
        call = located.entry
        by_id[call.invocation_id] = call.tool, call.agent
        if call.inside is not None:
            inside.append((call.inside, call.agent))
    around = ((by_id.get(invocation_id), agent) for invocation_id, agent in inside)
    handed_on = {outer[0] for outer, agent in around if outer is not None and outer[1] != agent}
    return ToolsOfLog(frozenset(tool for tool, _agent in by_id.values()), frozenset(handed_on))


def findings(settings: Config, tools: ToolsOfLog, of_gateways: frozenset[str]) -> Iterator[Finding]:
    """Compare the configured tools and scopes with the calls of the log.

    ``of_gateways`` are the called tools that a gateway lists without a table.
    """
    yield from _names(settings, tools.called)
    yield from _scopes(settings, tools, of_gateways)


def _names(settings: Config, called: frozenset[str]) -> Iterator[Finding]:
    redacted = settings.redact.keys() - {"*"}
    if not called:
        if settings.tools.tables or redacted:
            what = "the log has no call yet, with which to compare the names of tools"
            yield Finding("ok", "tools", what)
        return
    for name in settings.tools.tables:
        if name in called:
            yield Finding("ok", f"tool {name}", "the log has calls of it")
        else:
            yield _uncalled(
                f"[tools.{key(name)}]", f"tool {name}", name, called - {*settings.tools.tables}
            )
    names = called | settings.tools.tables.keys()
    for name in sorted(redacted - names):
        what = f"{name} in [redact] matches no tool so far"
        meant = closest_name(name, sorted(names))
        advice = f"did you mean {meant}?" if meant else "compare the name with the tool's"
        what = f"{what}: {advice}; until then nothing of it is redacted"
        yield Finding("warn", f"redact {name}", what)
    for secret, table in settings.secrets.items():
        for name in sorted({*table.tools} - names):
            meant = closest_name(name, sorted(names))
            if meant is not None:
                what = f"{name} in its tools matches no tool so far: did you mean {meant}?"
                yield Finding("warn", f"secret {secret}", what)


def _uncalled(where: str, check: str, name: str, called: frozenset[str]) -> Finding:
    meant = closest_name(name, sorted(called))
    if meant is None:
        return Finding("ok", check, "the log has no call of it so far")
    return Finding("warn", check, f"{where} matches no tool so far: did you mean {meant}?")


def _scopes(settings: Config, tools: ToolsOfLog, of_gateways: frozenset[str]) -> Iterator[Finding]:
    """Compare the scopes that the configured tools require with the scopes of the agents."""
    agents = settings.agents.values()
    scopes = {one for agent in agents if agent.scope is not None for one in agent.scope}
    for name, tool in settings.tools.tables.items():
        required = set() if tool.requires is None else {*tool.requires}
        for scope in sorted(required - scopes):
            what = (
                f"it requires {scope}, which no agent has: each call is denied (scope.exceeded); "
                "add the scope to max_scope or a role of an agent"
            )
            yield Finding("warn", f"tool {name}", what)
    for name in sorted(tools.called):
        table = settings.tools.tables.get(name)
        if table is not None or name.endswith(_OF_A_GATEWAY):
            continue
        if settings.tools.unlisted == "deny":
            if name in of_gateways:
                continue
            what = (
                f"the log has calls of it, and it has no table: each call is denied; if it is "
                f"still a tool, write [tools.{key(name)}], with the scopes that it requires"
            )
            yield Finding("ok", f"tool {name}", what)
            continue
        if name in tools.handed_on and settings.delegation is not None:
            what = "it hands work on to agents: [delegation] decides which agent may do so"
            yield Finding("ok", f"tool {name}", what)
            continue
        what = (
            "the log has calls of it, and agentguard.toml has no table for it: unless the code "
            "names a scope, every agent may ask for it and only the policy decides; write "
            f"[tools.{key(name)}], with the scopes that it requires"
        )
        yield Finding("warn", f"tool {name}", what)
