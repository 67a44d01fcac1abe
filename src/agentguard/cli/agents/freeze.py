"""``agentguard freeze`` and ``thaw``: deny every call in every process, and let them go on.

Both need the passphrase of the keys, and sign with the admin key.
"""

from __future__ import annotations

from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import ConfigOption, JsonOption, NoteOption
from agentguard.domain import administration
from agentguard.domain.passphrase import passphrase_of


def freeze(*, note: NoteOption, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Deny every call of every agent, from its next one on.

    In all processes on the state; calls that run already are not stopped. It is logged, and so is
    what is denied by it.
    """
    _brake(note=note, config=config, json=json, frozen=True)


def thaw(*, note: NoteOption, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Let calls go on after a freeze."""
    _brake(note=note, config=config, json=json, frozen=False)


def _brake(*, note: str, config: ConfigOption, json: bool, frozen: bool) -> None:
    settings = location.load_own(config)
    recorded = administration.freeze(
        settings,
        passphrase_of(settings),
        frozen=frozen,
        note=note,
        now=times.now(),
    )
    said = "frozen: every call is denied from here on" if frozen else "thawed: calls go on"
    screen.recorded(said, {"frozen": frozen}, recorded, json=json)
