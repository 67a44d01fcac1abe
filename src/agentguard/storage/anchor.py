"""Where the anchors of a log are: a folder outside the state, named after the log.

It has the newest head of the log (``store/anchor.py``), a copy of the log's trust document, and
copies of other files. Whoever cuts or replaces the state does not reach it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError

ADOPT: Final = "agentguard adopt --note TEXT"
"""The command that lets a log go on in a state as the state is."""

ROLLED_BACK: Final = (
    "the state was rolled back or replaced, or a copy of it was opened. Restore the newest state; "
    f"if this one is all there is, {ADOPT} lets the log go on in it, on record. Nothing is written "
    "until then"
)
"""The message for a state that is behind its anchor, with what to do."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9]{1,100}\Z")


def head_path(directory: Path, log: str) -> Path:
    """Return where the newest head of a log is in a directory."""
    return log_folder(directory, log) / "head"


def trust_path(directory: Path, log: str) -> Path:
    """Return where the copy of a log's trust document lies in a directory."""
    return log_folder(directory, log) / "trust.json"


def log_folder(directory: Path, log: str) -> Path:
    """Return where the anchors of a log lie; raises ``StorageError`` for no name of a log."""
    name = log.rpartition("/")[2]
    if _PLAIN_NAME.match(name) is None:  # the name may come from a state that somebody has changed
        message = f"{log!r} is no name of a log: its last part has letters and digits only"
        raise StorageError(message, code="anchor.unreadable")
    return directory / name
