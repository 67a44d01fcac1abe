"""``agentguard run``: starts a program as one agent of the guard server."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from agentguard.cli.terminal import location
from agentguard.cli.terminal.options import CONFIG, PROGRAM, Argument, Option, command
from agentguard.client import launch


@command(
    Argument(
        "program", "COMMAND...", "The program and its arguments, after --.", nargs=-1, required=True
    ),
    Option("--agent NAME", "The agent that the program may be.", required=True),
    Option("--user USER", "The user of the program; only root may name one."),
    Option(
        "--vouches-for PRINCIPAL",
        "A principal whom the program authenticates, as in user:*; may be repeated.",
        multiple=True,
    ),
    CONFIG,
    context_settings=PROGRAM,
)
def run(
    *,
    program: tuple[str, ...],
    agent: str,
    user: str | None,
    vouches_for: tuple[str, ...],
    config: Path | None,
) -> None:
    """The program inherits a connection to the server, which is bound to the agent and to the
    program's user: Guard.connect() finds it. Only root and the server's own user may start
    programs; root names the program's user with --user. The exit code is the program's own, or 2
    where the program can't be started.
    """
    server = location.load(config).require_server()
    account = _account(user)
    uid = os.getuid() if account is None else account.pw_uid
    channel = launch.channel_for(server.socket(), agent, uid, vouches_for, timeout=server.timeout)
    launch.replace_with(program, channel, account)


def _account(user: str | None) -> pwd.struct_passwd | None:
    """Return the account with this name or number; raises ``click.BadParameter``."""
    if user is None:
        return None
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError) as error:
        message = f"{user!r} is no user of this machine"
        raise click.BadParameter(message, param_hint="--user") from error
