"""``agentguard adopt``: continues the log in a copied state, or in one that is behind its anchor.

The command needs the passphrase of the keys, and signs with the admin key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import AS_JSON, CONFIG, NOTE, Option, command
from agentguard.domain import adoption
from agentguard.domain.adoption import Difference
from agentguard.domain.passphrase import passphrase_of


@command(
    NOTE,
    Option("--yes", "Do not ask before entries are lost."),
    CONFIG,
    AS_JSON,
)
def adopt(*, note: str, yes: bool, config: Path | None, json: bool) -> None:
    """For a copy whose original is no longer in use, and for a state that is behind its anchor
    (storage.rolled_back) when there is no newer state to restore. Entries that only the anchor has
    seen are lost; the loss is logged, and agentguard audit verify reports it. Without an anchor,
    nobody knows whether entries are lost: what is known is logged all the same.
    """
    settings = location.load_own(config)
    difference = adoption.compare(settings)
    where = location.from_home(settings.state)
    members = {
        "adopted": str(settings.state) if difference else None,
        "original": difference.original,
        "lost": [loss.as_json() for loss in difference.lost],
        "unanchored": [shard.as_json() for shard in difference.unanchored],
    }
    if not difference:
        if json:
            screen.json_line({**members, "shard": None, "index": None})
        else:
            screen.line(f"nothing to adopt: {where} is already the state of its log")
        return
    for line in _warnings(difference):
        (screen.warn if json else screen.line)(line)  # with --json, stdout holds only JSON
    asks = "Give up these entries?" if difference.lost else "Go on without knowing?"
    is_loss = bool(difference.lost or difference.unanchored)
    if is_loss and not yes and not screen.confirmed(asks):
        raise SystemExit(1)
    receipt = adoption.adopt(
        settings, passphrase_of(settings), difference, note=note, now=times.now()
    )
    screen.recorded(f"adopted: the log continues in {where}", members, receipt, json=json)


def _warnings(difference: Difference) -> Iterator[str]:
    if difference.original is not None:
        yield f"this state is a copy: from now on every call in {difference.original} is denied"
    for loss in difference.lost:
        yield loss.words
    for shard in difference.unanchored:
        yield shard.words
    if difference.unanchored:
        yield (
            "Revoke and freeze again what was revoked and frozen later: nothing else is known of it"
        )
    if difference.lost:
        yield (
            "Revocations, freezes and used approvals among the lost entries stay in force only if "
            "restrictions.json in the anchor lists them: revoke and freeze again where needed"
        )
        yield (
            "Lost calls no longer count towards max_calls, and a lost call of a journal runs again "
            "if a resumed run makes the call again"
        )
