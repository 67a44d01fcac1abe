"""The checks of ``agentguard doctor`` on the anchor: its rights, and the state that it names.

The checks change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal.location import from_home
from agentguard.domain import keystore
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError, StorageError
from agentguard.storage import state_location, writers
from agentguard.storage.anchor import ADOPT, head_path, log_folder


def findings(settings: Config) -> Iterator[Finding]:
    """Check the anchor of a configuration."""
    anchor = settings.anchor
    if anchor is None:
        what = (
            "there is no anchor, and a rollback of the state goes unnoticed: set anchor in "
            "agentguard.toml to a folder outside the state"
        )
        yield Finding("warn", "anchor", what)
    elif not anchor.is_dir():
        what = (
            f"there is no folder {anchor}: restore it, or run agentguard trust pin for a new anchor"
        )
        yield Finding("fail", "anchor", what)
    else:
        try:
            log = keystore.load_trust(settings.state).log
            folder = log_folder(anchor, log)
            require_writable([folder if folder.is_dir() else anchor, head_path(anchor, log)])
            original = state_location.original(folder, settings.state)
        except AgentguardError as error:
            yield Finding("fail", "anchor", str(error))
            return
        if original is not None:
            what = (
                f"it names {original} as the state of this log: {settings.state} is a copy, and "
                f"every call here is denied (storage.copied); {ADOPT} continues the log here, and "
                "ends it there"
            )
            yield Finding("fail", "anchor", what)
        elif not writers.is_apart(settings.state, folder):
            what = (
                f"{from_home(anchor)}, outside the state; whoever can write the state can change "
                "it, too, and a rollback of both goes unnoticed unless another user or machine "
                "copies the checkpoints into a file of its own, for agentguard audit verify "
                "--against FILE (docs/explanation/anchors.md)"
            )
            yield Finding("ok", "anchor", what)
        else:
            yield Finding("ok", "anchor", f"{from_home(anchor)}, outside the state")


def require_writable(paths: Iterable[Path]) -> None:
    """Raise ``StorageError`` (``storage.readonly``) for a path that exists and is not writable."""
    for path in sorted(paths):
        access = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
        if path.exists() and not os.access(path, access):
            message = (
                f"{path} is not writable, and every call is denied: give this user the right to "
                "write it"
            )
            raise StorageError(message, code="storage.readonly")
