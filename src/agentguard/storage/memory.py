"""A log in memory, gone with its process: for tests, notebooks and ``Guard.ephemeral``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint, End
from agentguard.audit.entry import BEGINNING, Record, StoredEntry
from agentguard.audit.merkle import CompactRange
from agentguard.audit.summary import OBSERVED, Search
from agentguard.signing.keys import Signer
from agentguard.storage.backend import Head


class MemoryBackend:
    """A ``Backend`` with the records of one shard in a list; ``copied`` returns a ``LogReader``."""

    durable = False

    def __init__(self, origin: str, signer: Signer, *, registry: bytes | None = None) -> None:
        self._signer = signer
        self._registry = registry
        # Python 3.14 may leave a lock held where a signal handler raises: this thread goes on.
        self._one_moment = threading.RLock()
        self._records: list[Record] = []
        self._checkpoints: list[Checkpoint] = []
        tree = CompactRange()
        self._head = Head(tree, Checkpoint(origin, 0, tree.root()), BEGINNING)

    def read_head(self) -> Head:
        """Return the newest head."""
        return self._head

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:  # noqa: ARG002
        """Keep the batch. Its checkpoint is signed when somebody reads it."""
        with self._one_moment:
            # a function call between the three could be interrupted, and leave a part of the batch
            self._records += records
            self._checkpoints += (head.checkpoint,)
            self._head = head

    def try_write(self) -> None:
        """Do nothing: memory can be written."""

    def copied(self) -> Self:
        """Return a copy of this log, which later writes do not change."""
        with self._one_moment:
            copy = type(self)(self._head.checkpoint.origin, self._signer, registry=self._registry)
            copy._records.extend(self._records)  # noqa: SLF001  of its own kind
            copy._checkpoints.extend(self._checkpoints)  # noqa: SLF001
            copy._head = self._head  # noqa: SLF001
        return copy

    def close(self) -> None:
        """Do nothing: a closed guard's log can still be read."""

    def abandon(self) -> None:
        """Do nothing: a fork has its own copy of the memory."""

    def registry(self) -> bytes | None:
        """The issuer's list of the one shard."""
        return self._registry

    def shards(self) -> Sequence[int]:
        """The one shard, number 0."""
        return (0,)

    def entries(
        self,
        shard: int,  # noqa: ARG002
        *,
        after: int = -1,
        newest_first: bool = False,
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``."""
        for index, record in self._past(after, newest_first=newest_first):
            yield index, record.body

    def checkpoints(self, shard: int) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the signed notes, signed now."""
        for point in self._checkpoints:
            yield checkpoint.sign(point, self._signer)

    def stored(self, shard: int) -> Iterator[StoredEntry]:  # noqa: ARG002
        """Yield the entries with all that stands beside them."""
        for index, record in enumerate(self._records):
            yield StoredEntry(index, *record)

    def snapshot(self, shard: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing to do: who reads has a copy of one moment."""
        return nullcontext()

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:  # noqa: ARG002
        """Nothing: what stands beside an entry is kept with it."""
        return iter(())

    def shared_ids(self, shard: int) -> Iterator[tuple[int, int]]:  # noqa: ARG002
        """Yield the calls with the id of an earlier call, each with the first one's index."""
        first: dict[str, int] = {}
        for index, record in enumerate(self._records):
            about = record.summary
            if about.kind == "call" and about.invocation_id is not None:
                before = first.setdefault(about.invocation_id, index)
                if before != index:
                    yield index, before

    def end(self, shard: int) -> End:  # noqa: ARG002
        """What the writer would go on from."""
        point = self._head.checkpoint
        return End(point.origin, point.size, self._head.tree.encode())

    def damage(self, shard: int) -> Iterator[str]:  # noqa: ARG002
        """Nothing: a list has no index beside it."""
        return iter(())

    def entry(self, shard: int, index: int) -> StoredEntry | None:  # noqa: ARG002
        """One entry with all that stands beside it."""
        if not 0 <= index < len(self._records):
            return None
        return StoredEntry(index, *self._records[index])

    def search(
        self,
        shard: int,  # noqa: ARG002
        search: Search,
        *,
        after: int = -1,
        newest_first: bool = False,
    ) -> Iterator[int]:
        """Yield the indices of the entries whose summaries match."""
        for index, record in self._past(after, newest_first=newest_first):
            if search.matches(record.summary):
                yield index

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""
        for index in self.search(shard, Search(kind="call")):
            if (self._records[index].summary.invocation_id or "").startswith(prefix):
                yield index

    def traces(self, shard: int, prefix: str) -> Iterator[str]:  # noqa: ARG002
        """Yield, sorted, the ids of the traces of entries that begin with ``prefix``."""
        found = {record.summary.trace_id or "" for record in self._records}
        yield from sorted(one for one in found if one and one.startswith(prefix))

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls to which no outcome belongs."""
        outcomes = self.search(shard, Search(kind="outcome"))
        ended = {self._records[index].summary.invocation_id for index in outcomes}
        calls = Search(kind="call")
        for index in self.search(shard, calls, newest_first=newest_first):
            if self._records[index].summary.decision not in ("allow", OBSERVED):
                continue
            if self._records[index].summary.invocation_id not in ended:
                yield index

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:  # noqa: ARG002
        """The signed note of one size, or the newest, signed now."""
        for point in reversed(self._checkpoints):
            if size is None or point.size == size:
                return checkpoint.sign(point, self._signer)
        return None

    def _past(self, after: int, *, newest_first: bool) -> Iterable[tuple[int, Record]]:
        past = list(enumerate(self._records))[max(after + 1, 0) :]
        return reversed(past) if newest_first else past
