"""A log in memory: for tests, notebooks and ``Guard.ephemeral``. It is gone with the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Record
from agentguard.audit.merkle import CompactRange
from agentguard.keys import Signer
from agentguard.storage.log import BEGINNING, Head


class MemoryBackend:
    """Keeps the records of one shard in a list; also a ``LogReader``."""

    durable = False

    def __init__(self, origin: str, signer: Signer, *, shard: int = 0) -> None:
        self._shard = shard
        self._signer = signer
        self._records: list[Record] = []
        self._checkpoints: list[Checkpoint] = []
        tree = CompactRange()
        self._head = Head(tree, Checkpoint(origin, 0, tree.root()), BEGINNING)

    def read_head(self) -> Head:
        """Return the newest head."""
        return self._head

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:  # noqa: ARG002
        """Keep the batch. Its checkpoint is signed when somebody reads it."""
        self._records.extend(records)
        self._checkpoints.append(head.checkpoint)
        self._head = head

    def close(self) -> None:
        """Keep everything: a closed guard's log can still be read."""

    def abandon(self) -> None:
        """A fork has its own copy of the memory; there is nothing to let go of."""

    def shards(self) -> Sequence[int]:
        """The one shard."""
        return (self._shard,)

    def entries(self, shard: int) -> Iterator[tuple[int, bytes]]:  # noqa: ARG002
        """Yield ``(index, canonical bytes)``."""
        for index, record in enumerate(tuple(self._records)):
            yield index, record.body

    def checkpoints(self, shard: int) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the signed notes, signed now."""
        for point in tuple(self._checkpoints):
            yield checkpoint.sign(point, self._signer)

    def attachments(self, shard: int, index: int) -> Sequence[Attachment]:  # noqa: ARG002
        """What stands beside one entry."""
        return self._records[index].attachments
