"""What the writer of a shard asks of the place that it writes to, and the end that it goes on from.

``memory.py`` and ``shard_file.py`` are such places; the writer stands in ``log.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.merkle import CompactRange
from agentguard.audit.records import Record

BEGINNING: Final = "1970-01-01T00:00:00.000000Z"
"""The time of a shard without entries."""


class Head:
    """The durable end of a shard: its tree, its checkpoint, the time of its newest entry."""

    __slots__ = ("at", "checkpoint", "tree")

    def __init__(self, tree: CompactRange, checkpoint: Checkpoint, at: str) -> None:
        self.tree = tree
        self.checkpoint = checkpoint
        self.at = at


class Backend(Protocol):
    """Where a shard's batches are written."""

    @property
    def durable(self) -> bool:
        """False where nothing outlives the process, so that what is enqueued need not hurry."""

    def read_head(self) -> Head:
        """Read the durable end again; raises ``StorageError``."""

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        """Write a batch and its head, all or nothing, durably; raises ``StorageError``.

        ``sign`` makes the checkpoint's signed note.
        """

    def close(self) -> None:
        """Give the place back."""

    def abandon(self) -> None:
        """Let go of what a fork has inherited, without a word to the place itself."""
