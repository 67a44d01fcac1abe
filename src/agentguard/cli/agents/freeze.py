"""``agentguard freeze`` and ``agentguard thaw``: deny every call of a state, or allow calls again.

Both need the passphrase of the keys, sign with the admin key, and append to the log.
"""

from __future__ import annotations

from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import ConfigOption, JsonOption, NoteOption
from agentguard.domain import administration
from agentguard.domain.passphrase import passphrase_of


def freeze(*, note: NoteOption, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Deny every call of every agent.

    The freeze counts from the next call on, in every process on the state, and lasts until
    agentguard thaw. Tools that run already are not stopped. The freeze and each denial are logged.
    """
    _set_frozen(note=note, config=config, json=json, frozen=True)


def thaw(*, note: NoteOption, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Allow calls again after a freeze."""
    _set_frozen(note=note, config=config, json=json, frozen=False)


def _set_frozen(*, note: str, config: ConfigOption, json: bool, frozen: bool) -> None:
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
