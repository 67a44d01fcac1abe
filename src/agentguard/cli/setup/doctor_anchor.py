"""What ``agentguard doctor`` says of the anchor: whether it can be written, and whose state it has.

Nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal.location import from_home
from agentguard.domain import keystore
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage import state_location, writers
from agentguard.storage.anchor import ADOPT, log_folder


def findings(settings: Config) -> Iterator[Finding]:
    """Check the anchor of a configuration."""
    anchor = settings.anchor
    if anchor is None:
        what = 'there is none: a state that is rolled back is not found out; set anchor, not ""'
        yield Finding("warn", "anchor", what)
    elif not anchor.is_dir():
        what = f"there is no {anchor}: bring it back; for a new one, agentguard trust pin"
        yield Finding("fail", "anchor", what)
    else:
        folder = _folder_of_log(anchor, settings.state)
        try:
            require_writable([folder, *folder.glob("*.checkpoint")])
            original = state_location.original(folder, settings.state)
        except AgentguardError as error:
            yield Finding("fail", "anchor", str(error))
            return
        if original is not None:
            what = (
                f"it knows {original} as the state of this log: {settings.state} is a copy, in "
                f"which every call is denied (storage.copied); {ADOPT} lets the log go on here, "
                "and not there"
            )
            yield Finding("fail", "anchor", what)
        elif not writers.is_apart(settings.state, folder):
            what = (
                f"{from_home(anchor)}, which whoever writes the state can change as well: a "
                "rollback of both is not found out. Let another user or machine copy the "
                "checkpoints into a file of its own, and verify with it: agentguard audit verify "
                "--against FILE (docs/records.md, An anchor elsewhere). This warning stays"
            )
            yield Finding("warn", "anchor", what)
        else:
            yield Finding("ok", "anchor", f"{from_home(anchor)}, outside the state")


def require_writable(paths: Iterable[Path]) -> None:
    """Raise ``StorageError`` (``storage.readonly``) for one that is there and can't be written."""
    for path in sorted(paths):
        needed = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
        if path.exists() and not os.access(path, needed):
            message = f"{path} can't be written: every call is denied; give this user the right"
            raise StorageError(message, code="storage.readonly")


def _folder_of_log(anchor: Path, state: Path) -> Path:
    with suppress(AgentguardError):  # what is wrong with the trust document is told by the log's
        own = log_folder(anchor, keystore.load_trust(state).log)
        return own if own.is_dir() else anchor
    return anchor
