"""The narrow protocols through which the line reaches the world.

Each is implemented on the line's far side (``engines/``, ``storage/``), and what a line runs on is
wired in ``guard/process.py``. A protocol stands here once it has a user, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from agentguard.approvals.request import ApprovalRequest
from agentguard.audit.checkpoint import Checkpoint, End
from agentguard.audit.entry import Receipt, Record, Stored
from agentguard.audit.summary import Search
from agentguard.call.journal import Page
from agentguard.signing.dsse import Envelope

__all__ = [
    "Approvals",
    "Asked",
    "AuditLog",
    "Clock",
    "Engine",
    "Entropy",
    "Explains",
    "Journal",
    "LogReader",
    "Revocations",
    "Runs",
]

Clock = Callable[[], datetime]
"""Returns the wall-clock time, aware and in UTC."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes, fit for keys."""


class Engine(Protocol):
    """A policy engine. ``evaluate`` may be called from any thread."""

    @property
    def name(self) -> str:
        """``rego``, ``opa``, ``function``, ..."""

    @property
    def version(self) -> str:
        """The version of the engine, as recorded with each decision."""

    @property
    def policy_sha256(self) -> str | None:
        """SHA-256 (hex) over the sorted ``{path: sha256}`` of modules and data; None if unknown."""

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}`` of what was loaded; empty if unknown."""

    @property
    def waits(self) -> bool:
        """Whether ``evaluate`` may wait for somebody else: then it is kept off the event loop."""

    def evaluate(self, document: bytes) -> object:
        """Evaluate the query on ``document`` (canonical JSON) and return its JSON value.

        Returns ``policy.UNDEFINED`` when the query has no value, and ``policy.Evaluated`` to say
        more of the evaluation. Raises ``PolicyError``, and
        nothing else, for every failure, panics of native code included.
        """

    def close(self) -> None:
        """Let go of what is held open, such as connections."""


@runtime_checkable
class Explains(Protocol):
    """An engine that has more to say of a refusal than goes on record, to who sets it up."""

    def explain(self, document: bytes, code: str, /) -> str | None:
        """Say where a refusal of ``document`` with this code comes from; None for nothing.

        It may quote arguments. Raises ``PolicyError``, as ``evaluate`` does.
        """


class AuditLog(Protocol):
    """An append-only log with one writer; safe to use from many threads."""

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry; the log's time never goes back past it."""

    def append(self, record: Record) -> Receipt:
        """Make ``record``, and everything enqueued before it, durable; return its place.

        Raises ``StorageError``; then the record is not in the log.
        """

    def enqueue(self, record: Record) -> None:
        """Hand over ``record``: it becomes durable with the next append, or within 50 ms."""

    def flush(self) -> None:
        """Make everything enqueued durable; raises ``StorageError``."""

    def close(self) -> None:
        """Flush, and give the log back; raises ``StorageError``."""


class Revocations(Protocol):
    """What was revoked, whether all is frozen, and how many calls are left; shared by processes."""

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return why nobody of these names may act now, as reason code and words; None if they may.

        Asked at every call, so it costs little. Raises ``StorageError``.
        """

    def consume(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Count one call under each ``(jti, most)``; count none where one of them has no call left.

        It is durable and atomic. Raises ``StorageError``, or as the log is read.
        """

    def is_within(self, limits: Sequence[tuple[str, int]]) -> bool:
        """Whether the log has no more calls than the limits allow. Raises as ``consume`` does."""


class Asked(NamedTuple):
    """A request as it lies there, with the answers to it, none of them verified.

    ``altered`` says that the log has no such request for this call: somebody has changed it where
    it lies, or has laid it there. Nothing in it counts then.
    """

    request: ApprovalRequest
    answers: tuple[Envelope, ...]
    altered: bool = False


class Approvals(Protocol):
    """Where requests wait for their answers; shared by processes. Each raises ``StorageError``."""

    def has(self, key: str) -> bool:
        """Whether a request lies under ``key``. Asked at every call, so it costs little."""

    def recall(self, key: str) -> Asked | None:
        """Read the request under ``key``, and hold it against the log; None if there is none."""

    def ask(self, key: str, request: ApprovalRequest) -> ApprovalRequest:
        """Lay a request under ``key``, durably, and return the one that lies there then.

        Raises ``ApprovalError`` (``approval.limit``) where too many wait already.
        """

    def spend(self, request: ApprovalRequest, approval_ids: Sequence[str]) -> bool:
        """Use a request and its approvals up, durably; return whether none was used before.

        It is the request as the call rests on it: what lies there by now may be another.
        """

    def is_alone(self, request: ApprovalRequest) -> bool:
        """Whether the log has one call alone on a request, once that call is in it."""

    def withdraw(self, key: str) -> None:
        """Remove the request under ``key``, with its answers."""


class Journal(Protocol):
    """What became of calls that may be made again; shared by processes.

    Each method raises ``StorageError``.
    """

    def name(self, key: str) -> str:
        """Return a call's name in the log, from which nobody learns what the key is made of."""

    def look(self, key: str) -> Page | None:
        """Return what is known of a call; None for nothing."""

    def begin(self, key: str, invocation_id: str) -> bool:
        """Say, durably, that a call begins; return whether it is the first."""

    def finish(self, key: str, page: Page) -> None:
        """Say what became of a call that has begun."""

    def forget(self, key: str) -> None:
        """Let a call be made anew."""


class Runs(Protocol):
    """What adapters keep of a run that goes on later. Each method raises ``StorageError``."""

    def read(self, name: str) -> bytes | None:
        """Return what was written under ``name``; None for nothing."""

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` there, durably, in place of what was there."""

    def add(self, name: str, data: bytes) -> bool:
        """Put ``data`` there, durably, if nothing is there; return whether it is."""

    def remove(self, name: str) -> None:
        """Remove what is there, if anything is."""


class LogReader(Protocol):
    """Reads a log as it lies there, trusting nothing of it. Each method raises ``StorageError``."""

    def registry(self) -> bytes | None:
        """The issuer's list of the shards (``audit/registry.py``), None if there is none."""

    def shards(self) -> Sequence[int]:
        """The numbers of the shards that are there, in order."""

    def entries(
        self, shard: int, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(index, canonical bytes)`` past ``after``, in the order of the index."""

    def stored(self, shard: int) -> Iterator[Stored]:
        """Yield the entries with all that stands beside them, in the order of the index."""

    def snapshot(self, shard: int) -> AbstractContextManager[None]:
        """Read, within it, what one shard holds at one moment."""

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:
        """Yield ``(index, table)`` of what is kept beside an entry that is not there."""

    def entry(self, shard: int, index: int) -> Stored | None:
        """One entry with all that stands beside it, None if it is not there."""

    def search(
        self, shard: int, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        """Yield, in order, the indices past ``after`` of the entries whose summaries match."""

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        """Yield the indices of the authorizations of calls whose ids begin with ``prefix``."""

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the indices of the allowed calls to which no outcome belongs, by the summaries."""

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        """Yield the signed notes in the order of their size."""

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:
        """The signed note of one size, or the newest; None if there is none."""

    def end(self, shard: int) -> End | None:
        """What the shard's writer would go on from; None if there is nothing."""

    def damage(self, shard: int) -> Iterator[str]:
        """Yield what is wrong with the way in which entries are found, in words."""

    def close(self) -> None:
        """Let go of what is open; reading on opens it anew."""
