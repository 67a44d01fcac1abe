"""The protocols of the audit log: for writers, and for readers.

``store/log.py`` and ``store/reader.py`` implement the protocols on the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Protocol, TypeVar

from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import LogPlace, Record, StoredEntry
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.audit.state import State
from agentguard.audit.summary import Search
from agentguard.signing.dsse import JointSignature
from agentguard.signing.keys import Signer

T = TypeVar("T")


class PageReader(Protocol):
    """The pages beside the log at one moment; no head covers a page.

    Each method raises ``StorageError``.
    """

    def page(self, name: str) -> bytes | None:
        """Return a page; None for none."""

    def pages(self, folder: str) -> dict[str, bytes]:
        """Return the pages whose names begin with ``folder`` and a slash, the oldest first."""


class Pages(PageReader, Protocol):
    """The pages as a commit sees and writes them."""

    def write_page(self, name: str, data: bytes | None) -> None:
        """Write a page in the place of an earlier one, or remove it (None)."""


class AuditLog(Protocol):
    """An append-only log of one order; safe to use from many threads and processes."""

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry; the log's time never goes back past it."""

    def look(self, work: Callable[[State], T]) -> T:
        """Return what ``work`` reads in what decides later calls, as of the newest head.

        Raises ``StorageError``.
        """

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason why a bearer of ``names`` is refused now, or None."""

    def append(
        self,
        record: Record,
        *,
        names: AbstractSet[str] | None = None,
        within: Callable[[Pages], object] | None = None,
    ) -> LogPlace:
        """Make ``record``, and all signed records enqueued before, durable; return its place.

        ``within`` may write pages in the same commit. Raises ``DelegationError`` where a bearer of
        ``names`` may act no more by then, ``StorageError``, and what ``within`` and
        ``Entry.change`` raise: nothing is written then.
        """

    def enqueue(self, record: Record | UnsignedOutcome) -> None:
        """Enqueue ``record``, which becomes durable with the next append, or within 50 ms.

        An unsigned outcome waits for ``give_signature`` before an append takes it along. If no
        signature comes within the 50 ms, the outcome's own signer signs the outcome alone.
        """

    def unsigned(self, signer: Signer) -> Sequence[UnsignedOutcome]:
        """Return the enqueued outcomes that wait for a signature of ``signer``.

        There are at most ``dsse.MAX_SUBJECTS - 1``, so that one more statement can be signed.
        """

    def give_signature(
        self, outcomes: Sequence[UnsignedOutcome], signature: JointSignature
    ) -> None:
        """Give ``outcomes`` that still wait their signature, for the next append to take along."""

    def flush(self) -> None:
        """Make all enqueued records durable; raises ``StorageError``."""

    def close(self) -> None:
        """Flush, and close the log; raises ``StorageError``."""


class LogReader(Protocol):
    """Reads a stored log without verifying it. Each method raises ``StorageError``.

    An entry never changes, so no two reads have to see one moment.
    """

    def size(self) -> int:
        """Return how many entries the stored head says that there are."""

    def head(self) -> bytes | None:
        """Return the signed note of the head (``audit/head.py``); None without one."""

    def entries(
        self, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""

    def stored(self) -> Iterator[StoredEntry]:
        """Yield the entries with their summaries and attachments, in the order of the index."""

    def entry(self, index: int) -> StoredEntry | None:
        """Return an entry with its summary and attachments, None without one."""

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Return the proof of an entry in the first ``size`` entries (RFC 9162, 2.1.3.1).

        It is made of stored hashes, and unverified. Raises ``IndexError`` for no such entry.
        """

    def consistency_proof(self, size1: int, size2: int) -> list[bytes]:
        """Return the proof that one tree extends another (RFC 9162, 2.1.4.1), as above."""

    def shared_ids(self) -> Iterator[tuple[int, int]]:
        """Yield the calls with the id of an earlier call, the first hundred, by the summaries.

        Each is the index of the call's authorization, and that of the first call with the id.
        """

    def search(
        self, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield, in order, the indices past ``after`` of the entries whose summaries match."""

    def named(self, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""

    def traces(self, prefix: str) -> Iterator[str]:
        """Yield, sorted, the ids of the traces of entries that begin with ``prefix``."""

    def unsettled(self, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls without an outcome, according to the summaries."""

    def damage(self) -> Iterator[str]:
        """Yield in words what is damaged: the file, an index, hashes, rows without an entry."""

    def close(self) -> None:
        """Close all open files; the next read opens them again."""
