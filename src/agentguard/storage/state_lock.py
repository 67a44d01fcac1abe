"""The lock of a whole state: for a rotation of keys, and for what is saved beside the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentguard.storage import lock


@contextmanager
def held(state: Path) -> Iterator[None]:
    """Keep other processes from the same; waits and raises as ``lock.acquire`` does."""
    with lock.held(state / "state.lock"):
        yield
