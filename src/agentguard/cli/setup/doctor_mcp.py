"""The checks of ``agentguard doctor`` on MCP servers behind gateways.

They are about agents, pins, secrets and tokens.

No server is started: ``agentguard mcp diff`` compares a server with its pins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Final

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.tokens import require_tokens
from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal.location import from_home
from agentguard.domain.config import Config
from agentguard.domain.config.mcp import McpConfig
from agentguard.errors import AgentguardError
from agentguard.spelling import did_you_mean
from agentguard.visible import visible_text

_METHOD: Final = "mcp:"
_START: Final = f"{_METHOD}start"


def findings(settings: Config, *, own: bool) -> Iterator[Finding]:
    """Check each table ``[mcp.NAME]``, and the names that several servers share.

    ``own`` says that the configuration has the agents and the secrets, and no guard server has
    them.
    """
    if find_spec("agentguard_mcp") is None:
        what = "agentguard-mcp is not installed: pip install ./integrations/agentguard-mcp"
        yield Finding("warn", "mcp", what)
        return
    tools: dict[str, list[str]] = defaultdict(list)
    for name, table in settings.mcp.items():
        check = f"mcp {name}"
        if own:
            yield from _mistakes(settings, check, table)
        try:
            require_tokens(settings, name, table)
        except AgentguardError as error:
            yield Finding("fail", check, str(error))
        try:
            pins = gateway.read_pins(settings, name)
        except (AgentguardError, OSError) as error:
            yield Finding("fail", check, str(error))
            continue
        if pins is None:
            what = f"no tool is pinned: run agentguard mcp pin --name {name}"
            yield Finding("warn", check, what)
            continue
        for tool in pins.definitions:
            tools[table.prefix + tool].append(name)
        path = from_home(gateway.pins_path(settings, name))
        yield Finding("ok", check, f"{len(pins.definitions)} tools are pinned in {path}")
        yield from _patterns(check, table, pins.definitions)
        for tool, why in pins.uncheckable.items():
            shown = visible_text(tool)
            yield Finding("warn", check, f"the tool {shown} is in no list, and refused: {why}")
    yield from _shared(tools)


def _patterns(check: str, table: McpConfig, tools: Iterable[str]) -> Iterator[Finding]:
    """Warn of patterns in ``tools`` and ``rounds`` that match no pinned tool."""
    methods = [f"{_METHOD}{method}" for method in ("prompts/get", "resources/read")]
    for key, patterns, names in (
        ("tools", () if table.tools is None else table.tools, [*tools]),
        ("rounds", table.rounds, [*tools, *methods]),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                meant = did_you_mean(pattern, names).strip() or "correct it, or pin the tool"
                yield Finding("warn", check, f"{pattern} in {key} matches no pinned tool: {meant}")


def listed(settings: Config, names: Iterable[str]) -> frozenset[str]:
    """Return those of ``names`` that gateways list without a table: pinned tools, MCP's methods."""
    found: set[str] = set()
    for server, table in settings.mcp.items():
        own = {name for name in names if name.removeprefix(table.prefix).startswith(_METHOD)}
        with suppress(AgentguardError, OSError):  # ``findings`` reports it
            pins = gateway.read_pins(settings, server) if find_spec("agentguard_mcp") else None
            for tool in () if pins is None else pins.definitions:
                action = table.prefix + tool
                own.add(settings.aliases.get(action, action))
        found |= own
    return frozenset(found.intersection(names))


def _mistakes(settings: Config, check: str, table: McpConfig) -> Iterator[Finding]:
    if table.agent is not None and table.agent not in settings.agents:
        yield Finding("fail", check, f"there is no table [agents.{table.agent}]")
    named = [*table.secrets.values(), *([table.bearer] if table.bearer is not None else [])]
    for name in named:
        secret, tool = settings.secrets.get(name), table.prefix + _START
        if secret is None or tool not in secret.tools:
            what = f"the secret {name} is not for {tool}: name it in tools of [secrets.{name}]"
            yield Finding("fail", check, what)


def _shared(tools: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Warn of tools of several servers that the policy can't tell apart."""
    for name, servers in sorted(tools.items()):
        if len(servers) > 1:
            what = (
                f"the servers {', '.join(servers)} have a tool {name}, and the policy can't tell "
                "them apart: give one of the servers a prefix"
            )
            yield Finding("warn", "mcp", what)
