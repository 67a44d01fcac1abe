"""``agentguard mcp run``: the gateway on stdio, in front of a server on stdio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import Command, CommandArgument, NameOption
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import ConfigOption
from agentguard.errors import ConfigError


def run(
    command: CommandArgument = None,
    *,
    agent: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The agent that makes the calls; or in [mcp.SERVER]."),
    ] = None,
    name: NameOption = None,
    principal: Annotated[
        str | None,
        typer.Option(
            metavar="PRINCIPAL",
            help="The user for whom the agent acts, as in user:alice; or in [mcp.SERVER].",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task for which PRINCIPAL delegates.")
    ] = None,
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
    server, table, chosen = gateway.server_of(settings, name, command or ())
    caller, user = agent or table.agent, principal or table.principal
    if caller is None:
        message = f"name the agent with --agent, or as agent in [mcp.{server}]"
        raise ConfigError(message)
    if task is not None and user is None:
        raise ConfigError("--task needs a principal, who delegates for the task")
    scope = gateway.scope_of(settings, caller, user, table.scope)
    pins = gateway.read_pins(settings, server)
    if pins is None:
        screen.warn(
            f"the tools of the MCP server {server} are not pinned: each tool is held to its first "
            f"description of this run. agentguard mcp pin --name {server} pins them"
        )
    chosen_settings = package.Settings(
        server=server,
        command=chosen,
        agent=caller,
        principal=user,
        task_id=task,
        prefix=table.prefix,
        pins=pins,
        tools=table.tools,
        delegated=scope.delegated,
        scope=scope.visible,
        environment=package.environment(os.environ, (*table.env, *(env or ()))),
        secrets=table.secrets,
        timeout=table.timeout,
        recheck=table.recheck,
        wait=table.wait,
    )
    raise typer.Exit(package.run(chosen_settings, Path(settings.source)))


run.command_class = Command  # type: ignore[attr-defined]  # read by cli/lazy.py
