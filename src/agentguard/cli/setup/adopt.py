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
    nobody knows whether entries are lost: what is known is logged all the same. In both cases every
    call is frozen until agentguard thaw.
    """
    settings = location.load_own(config)
    difference = adoption.compare(settings)
    lost, unanchored = difference.lost, difference.unanchored
    where = location.from_home(settings.state)
    members = {
        "adopted": str(settings.state) if difference else None,
        "original": difference.original,
        "lost": lost and lost.as_json(),
        "unanchored": unanchored and unanchored.as_json(),
    }
    if not difference:
        if json:
            screen.json_line({**members, "index": None})
        else:
            screen.line(f"nothing to adopt: {where} is already the state of its log")
        return
    for line in _warnings(difference):
        (screen.warn if json else screen.line)(line)  # with --json, stdout holds only JSON
    asks = "Go on without knowing?" if lost is None else "Give up these entries?"
    if (lost or unanchored) and not yes and not screen.confirmed(asks):
        raise SystemExit(1)
    receipt = adoption.adopt(
        settings, passphrase_of(settings), difference, note=note, now=times.now()
    )
    screen.recorded(f"adopted: the log continues in {where}", members, receipt, json=json)


def _warnings(difference: Difference) -> Iterator[str]:
    if difference.original is not None:
        yield f"this state is a copy: from now on every call in {difference.original} is denied"
    known = difference.lost or difference.unanchored
    if known is not None:
        yield f"the log goes on {known.words}" if difference.lost is not None else known.words
        yield (
            "Revocations may be among what is lost, so every call is frozen: revoke again what "
            "must stay revoked, then run agentguard thaw"
        )
        yield (
            "Requests that wait, and delegations with max_calls, count no more. A lost call of a "
            "journal runs again if a resumed run makes the call again"
        )
