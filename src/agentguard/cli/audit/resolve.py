"""``agentguard resolve`` and ``agentguard erase``: the administrator's statements about a call.

Both need the passphrase of the keys, sign with the admin key, and append to the log.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from agentguard.audit.entry import CallPlace
from agentguard.cli.audit import lookup
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import AS_JSON, CALL_ARGUMENT, CONFIG, NOTE, Option, command
from agentguard.domain import administration
from agentguard.domain.config import Config
from agentguard.domain.passphrase import passphrase_of
from agentguard.store.reader import StoredLog
from agentguard.visible import visible_text


@command(
    CALL_ARGUMENT,
    Option(
        "--ran/--not-ran",
        "Whether the tool ran, as you found out; one is required.",
        default=None,
    ),
    NOTE,
    CONFIG,
    AS_JSON,
)
def resolve(*, call: str, ran: bool | None, note: str, config: Path | None, json: bool) -> None:
    """The log authorises such a call and has no outcome of it, because the process or its disk
    failed. Find out whether the tool ran; your statement is signed with the admin key and logged.
    """
    if ran is None:  # Click would name only --ran as the missing option, which suggests an answer
        raise click.BadParameter("add --ran or --not-ran")
    settings = location.load_own(config)
    found = _found(settings, call)
    invocation_id = lookup.id_of(found)
    receipt = administration.resolve(
        settings,
        passphrase_of(settings),
        found,
        ran=ran,
        note=note,
        now=times.now(),
    )
    summary = f"resolved: {invocation_id} {'ran' if ran else 'did not run'}"
    screen.recorded(summary, {"invocation_id": invocation_id, "ran": ran}, receipt, json=json)


@command(
    CALL_ARGUMENT,
    NOTE,
    Option("--yes", "Do not ask, although an erasure can't be undone."),
    CONFIG,
    AS_JSON,
)
def erase(*, call: str, note: str, yes: bool, config: Path | None, json: bool) -> None:
    """If the same call was made several times, as in a run that goes on, all attempts are erased.
    The entries of the call and every proof of them stay valid without these data. Copies elsewhere
    (backups, exports, evidence files) are not erased.
    """
    settings = location.load_own(config)
    found = _found(settings, call)
    invocation_id = lookup.id_of(found)
    name = visible_text(invocation_id[:32])
    question = f"Erase the arguments, the policy input and the result of the call {name}?"
    if not yes and not screen.confirmed(question):
        raise SystemExit(1)
    erasure = administration.erase(
        settings, passphrase_of(settings), found, note=note, now=times.now()
    )
    removed = erasure.attachments
    repeats = [one.invocation_id for one in erasure.repeats]
    members = {"invocation_id": invocation_id, "attachments": removed, "repeats": repeats}
    what = f"{removed} attachments" if removed else "no attachments, because none were left,"
    also = screen.count(len(repeats), "other attempt", "other attempts")
    also = f" and {also} of the same call" if repeats else ""
    summary = f"erased: {what} of {invocation_id}{also}"
    screen.recorded(summary, members, erasure.recorded, json=json)


def _found(settings: Config, call: str) -> str | CallPlace:
    with closing(StoredLog.of(settings.state)) as reader:
        return lookup.call(reader, call)
