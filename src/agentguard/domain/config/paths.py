"""Paths in a configuration: absolute from its folder on, and an anchor outside the state.

Which folder a tool's argument may name is a value of ``tools.py``.
"""

from __future__ import annotations

from pathlib import Path

from agentguard.errors import ConfigError


def resolve(base: Path, text: str) -> Path:
    """Return a path of the configuration: relative to its file, ``~`` expanded."""
    try:
        return base / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text!r}: there is no such home directory") from error


def require_outside(anchor: Path | None, state: Path, where: str = "") -> None:
    """Refuse an anchor inside the state, which would be rolled back with it.

    ``where`` begins the message. Raises ``ConfigError`` (``anchor.inside``).
    """
    if anchor is not None and is_inside(anchor, state):
        message = (
            f"{where}{anchor} lies inside the state {state}, for which it should vouch: name a "
            "folder outside it, or '' for none"
        )
        raise ConfigError(message, code="anchor.inside")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return path.resolve().is_relative_to(folder.resolve())
