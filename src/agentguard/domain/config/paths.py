"""Refuses an anchor inside the state."""

from __future__ import annotations

from pathlib import Path

from agentguard.errors import ConfigError


def require_outside(anchor: Path | None, state: Path, where: str) -> None:
    """Refuse an anchor inside the state: a rollback of the state would roll the anchor back, too.

    ``where`` is the beginning of the message. Raises ``ConfigError`` (``anchor.inside``).
    """
    if anchor is not None and is_inside(anchor, state):
        message = (
            f"{where}{anchor} is inside the state {state}, and a rollback of the state would roll "
            "it back, too: name a folder outside the state, or '' for no anchor"
        )
        raise ConfigError(message, code="anchor.inside")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return path.resolve().is_relative_to(folder.resolve())
