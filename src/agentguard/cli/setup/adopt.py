"""``agentguard adopt``: continues the log in a copy, or in a state that is behind its anchor.

The command needs the passphrase of the keys, and signs with the admin key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import ConfigOption, JsonOption, NoteOption
from agentguard.domain import adoption
from agentguard.domain.adoption import Difference
from agentguard.domain.passphrase import passphrase_of


def adopt(
    *,
    note: NoteOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before entries are lost.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Continue the log in a copied or restored state.

    For a copy whose original is not used any more, and for a state that is behind its anchor
    (storage.rolled_back) where there is no newer state to restore. Entries that only the anchor has
    seen are lost; the loss is logged, and agentguard audit verify reports it.
    """
    settings = location.load_own(config)
    difference = adoption.compare(settings)
    where = location.from_home(settings.state)
    members = {
        "adopted": str(settings.state) if difference else None,
        "original": difference.original,
        "lost": [loss._asdict() for loss in difference.lost],
    }
    if not difference:
        if json:
            screen.json_line({**members, "shard": None, "index": None})
        else:
            screen.line(f"{where} is the state of its log already")
        return
    for line in _warnings(difference):
        (screen.warn if json else screen.line)(line)  # stdout is the JSON's
    if difference.lost and not yes and not screen.confirmed("Let these entries go?"):
        raise typer.Exit(1)
    receipt = adoption.adopt(
        settings, passphrase_of(settings), difference, note=note, now=times.now()
    )
    screen.recorded(f"adopted: the log goes on in {where}", members, receipt, json=json)


def _warnings(difference: Difference) -> Iterator[str]:
    if difference.original is not None:
        yield f"this state is a copy: no call is made in {difference.original} from here on"
    for loss in difference.lost:
        yield f"{loss.words()}"
    if difference.lost:
        yield (
            "Revocations, freezes and used approvals among what is lost count on only where the "
            "anchor's restrictions.json has them: revoke and freeze again what shall stay so"
        )
        yield (
            "Calls among what is lost do not count under max_calls any more, and a journalled one "
            "may run again if it is made again"
        )
