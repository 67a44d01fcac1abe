"""The protocol of the place to which a shard's writer writes, and the head of a shard.

``memory.py`` and ``shard_file.py`` implement the protocol; the writer is in ``log.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Record
from agentguard.audit.merkle import CompactRange


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
        """False where nothing outlives the process, so that queued records may wait."""

    def read_head(self) -> Head:
        """Read the durable end again; raises ``StorageError``."""

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        """Write a batch and its head, all or nothing, durably; raises ``StorageError``.

        ``sign`` makes the checkpoint's signed note.
        """

    def try_write(self) -> None:
        """Write the durable end again as it is, durably; raises ``StorageError`` as ``write``."""

    def close(self) -> None:
        """Close the place."""

    def abandon(self) -> None:
        """In a fork, drop what was inherited, and leave the place itself alone."""
