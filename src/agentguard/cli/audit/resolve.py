"""``agentguard resolve`` and ``agentguard erase``: the administrator's statements about a call.

Both need the passphrase of the keys, sign with the admin key, and append to the log.
"""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from agentguard.cli.audit import lookup
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import CallArgument, ConfigOption, JsonOption, NoteOption
from agentguard.domain import administration
from agentguard.domain.config import Config
from agentguard.domain.passphrase import passphrase_of
from agentguard.storage.reader import StateReader
from agentguard.visible import visible_text


def resolve(
    call: CallArgument,
    *,
    ran: Annotated[
        bool | None,
        typer.Option(
            "--ran/--not-ran", help="Whether the tool ran, as you have found out: one of the two."
        ),
    ] = None,
    note: NoteOption,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Record whether the tool of a call in doubt ran.

    It was authorised, and the log has no outcome: the process died, or its disk did. Find out
    whether its tool ran, and say so; the statement is signed with the admin key and logged.
    """
    if ran is None:  # a required option would be asked for as --ran alone, which leads the witness
        raise typer.BadParameter("say which: --ran or --not-ran")
    settings = location.load_own(config)
    invocation_id = _named(settings, call)
    recorded = administration.resolve(
        settings,
        passphrase_of(settings),
        invocation_id,
        ran=ran,
        note=note,
        now=times.now(),
    )
    summary = f"resolved: {invocation_id} {'ran' if ran else 'did not run'}"
    screen.recorded(summary, {"invocation_id": invocation_id, "ran": ran}, recorded, json=json)


def erase(
    call: CallArgument,
    *,
    note: NoteOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it can't be undone.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Erase the arguments, the policy input and the result of a call.

    What the log says of the call, and every proof of it, holds without them. Copies elsewhere
    (backups, exports, evidence files) are not reached.
    """
    settings = location.load_own(config)
    invocation_id = _named(settings, call)
    question = f"Erase what call {visible_text(invocation_id[:32])} was given and returned?"
    if not yes and not screen.confirmed(question):
        raise typer.Exit(1)
    done = administration.erase(
        settings, passphrase_of(settings), invocation_id, note=note, now=times.now()
    )
    erased = {"invocation_id": invocation_id, "attachments": done.attachments}
    what = f"{done.attachments} attachments" if done.attachments else "nothing was left to erase"
    screen.recorded(f"erased: {what} of {invocation_id}", erased, done.recorded, json=json)


def _named(settings: Config, call: str) -> str:
    with closing(StateReader(settings.state)) as reader:
        return lookup.invocation_id(reader, call)
