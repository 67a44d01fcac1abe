"""``agentguard mcp run``: the gateway on stdio, in front of a server on stdio or over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import AGENT, PRINCIPAL, SERVER, TASK, URL, ServerOptions
from agentguard.cli.terminal import location
from agentguard.cli.terminal.options import PROGRAM, command


@command(AGENT, PRINCIPAL, TASK, URL, *SERVER, context_settings=PROGRAM)
def run(
    *, agent: str | None, principal: str | None, task: str | None, **given: Unpack[ServerOptions]
) -> None:
    """An MCP client starts this command in the place of the server, and speaks MCP to it over stdin
    and stdout. Each call of a tool, each read of a resource and each get of a prompt is decided by
    the policy, signed and logged as a call of the agent, and reaches the server only if it is
    allowed. A tool that differs from its pin is neither shown nor called. Exit code 1 if the server
    ends before the client does.
    """
    settings = location.load(given["config"])
    package = gateway.package()
    server = gateway.server_of(settings, given["name"], given["command"], given["url"])
    caller = gateway.Caller(agent, principal, task)
    gateway.require_caller(server, caller)
    pins = gateway.pins_or_warning(settings, server)
    chosen = gateway.settings_of(settings, server, caller, given["env"], pins)
    raise SystemExit(package.run(chosen, Path(settings.source)))
