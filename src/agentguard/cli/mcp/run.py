"""``agentguard mcp run``: the gateway on stdio, in front of a server on stdio or over HTTP."""

from __future__ import annotations

from pathlib import Path

import typer

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import (
    AgentOption,
    Command,
    CommandArgument,
    EnvOption,
    NameOption,
    PrincipalOption,
    TaskOption,
    UrlOption,
)
from agentguard.cli.terminal import location
from agentguard.cli.terminal.options import ConfigOption


def run(
    command: CommandArgument = None,
    *,
    agent: AgentOption = None,
    name: NameOption = None,
    principal: PrincipalOption = None,
    task: TaskOption = None,
    url: UrlOption = None,
    env: EnvOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve an MCP client, and guard each call on the server behind.

    An MCP client starts this command in the place of the server, and speaks MCP to it over stdin
    and stdout. Each call of a tool, each read of a resource and each get of a prompt is decided by
    the policy, signed and logged as a call of the agent, and reaches the server only if it is
    allowed. A tool that differs from its pin is neither shown nor called. Exit code 1 if the server
    ends before the client does.
    """
    settings = location.load(config)
    package = gateway.package()
    server = gateway.server_of(settings, name, command or (), url)
    caller = gateway.Caller(agent, principal, task)
    gateway.require_caller(server, caller)
    pins = gateway.pins_or_warning(settings, server)
    chosen = gateway.settings_of(settings, server, caller, env or (), pins)
    raise typer.Exit(package.run(chosen, Path(settings.source)))


run.command_class = Command  # type: ignore[attr-defined]  # read by cli/lazy.py
