"""The lock of a whole state: for a rotation of keys, and for what is saved beside the log."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from agentguard.storage import lock


def held(state: Path) -> FileIO:
    """Return the lock, for a ``with``; waits and raises as ``lock.acquire`` does."""
    return lock.acquire(state / "state.lock")
