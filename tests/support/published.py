"""Writes who may act no more in a domain to a file, as ``agentguard revocations`` does."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from agentguard.domain import keystore
from agentguard.storage import files, published_revocations
from agentguard.store.state_log import open_log


def publish(state: Path, file: Path) -> Path:
    """Write the file of a state anew; return its path."""
    trust = keystore.load_trust(state)
    with closing(open_log(state, None, trust.log, lambda: trust.keys_for("log"))) as log:
        files.replace(file, published_revocations.of(log))
    return file
