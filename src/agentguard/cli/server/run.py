"""``agentguard run``: starts a program as one agent of the guard server."""

from __future__ import annotations

import os
import pwd
from typing import Annotated

import typer
from typer.core import TyperCommand

from agentguard.cli.terminal import location
from agentguard.cli.terminal.options import ConfigOption
from agentguard.client import launch


class _Command(TyperCommand):
    """A command whose options end before the first word of the program."""

    allow_interspersed_args = False


def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", help="The program and its arguments, after --."),
    ],
    *,
    agent: Annotated[str, typer.Option(metavar="NAME", help="The agent that the program may be.")],
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="The user of the program; only root may name one."),
    ] = None,
    vouches_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRINCIPAL",
            help="A principal whom the program authenticates, as in user:*; may be repeated.",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Start a program as one agent of a running guard server.

    The program inherits a connection to the server, which is bound to the agent and to the
    program's user: Guard.connect() finds it. Only root and the server's own user may start
    programs; root names the program's user with --user. The exit code is the program's own, or 2
    where the program can't be started.
    """
    server = location.load(config).require_server()
    account = _account(user)
    uid = os.getuid() if account is None else account.pw_uid
    channel = launch.channel_for(
        server.socket(),
        agent,
        uid,
        () if vouches_for is None else vouches_for,
        timeout=server.timeout,
    )
    launch.replace_with(command, channel, account)


run.command_class = _Command  # type: ignore[attr-defined]  # read by cli/lazy.py


def _account(user: str | None) -> pwd.struct_passwd | None:
    """Return the account with this name or number; raises ``typer.BadParameter``."""
    if user is None:
        return None
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError) as error:
        message = f"{user!r} is no user of this machine"
        raise typer.BadParameter(message, param_hint="--user") from error
