"""``agentguard freeze`` and ``agentguard thaw``: deny every call of a state, or allow calls again.

Both need the passphrase of the keys, sign with the admin key, and append to the log.
"""

from __future__ import annotations

from pathlib import Path

from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import AS_JSON, CONFIG, NOTE, command
from agentguard.domain import administration
from agentguard.domain.passphrase import passphrase_of


@command(NOTE, CONFIG, AS_JSON)
def freeze(*, note: str, config: Path | None, json: bool) -> None:
    """The freeze counts from the next call on, in every process on the state, and lasts until
    agentguard thaw. Tools that run already are not stopped. The freeze and each denial are logged.
    """
    _set_frozen(note=note, config=config, json=json, frozen=True)


@command(NOTE, CONFIG, AS_JSON)
def thaw(*, note: str, config: Path | None, json: bool) -> None:
    """The end of the freeze counts from the next call on, and is logged."""
    _set_frozen(note=note, config=config, json=json, frozen=False)


def _set_frozen(*, note: str, config: Path | None, json: bool, frozen: bool) -> None:
    settings = location.load_own(config)
    recorded = administration.freeze(
        settings,
        passphrase_of(settings),
        frozen=frozen,
        note=note,
        now=times.now(),
    )
    message = "frozen: every call is denied from here on" if frozen else "thawed: calls go on"
    screen.recorded(message, {"frozen": frozen}, recorded, json=json)
