"""``agentguard mcp run``: the gateway on stdio, in front of a server on stdio or over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import (
    AgentOption,
    Command,
    CommandArgument,
    NameOption,
    PrincipalOption,
    UrlOption,
)
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import ConfigOption
from agentguard.errors import ConfigError


def run(
    command: CommandArgument = None,
    *,
    agent: AgentOption = None,
    name: NameOption = None,
    principal: PrincipalOption = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task for which PRINCIPAL delegates.")
    ] = None,
    url: UrlOption = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIABLE", help="A variable that the server gets; may be repeated."),
    ] = None,
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
    if agent is None and server.table.agent is None:
        message = f"name the agent with --agent, or as agent in [mcp.{server.name}]"
        raise ConfigError(message)
    if task is not None and principal is None and server.table.principal is None:
        raise ConfigError("--task needs a principal, who delegates for the task")
    pins = gateway.read_pins(settings, server.name)
    if pins is None:
        screen.warn(
            f"the tools of the MCP server {server.name} are not pinned: each tool is held to its "
            f"first description of this run. agentguard mcp pin --name {server.name} pins them"
        )
    chosen = gateway.settings_of(settings, server, caller, env or (), pins)
    raise typer.Exit(package.run(chosen, Path(settings.source)))


run.command_class = Command  # type: ignore[attr-defined]  # read by cli/lazy.py
