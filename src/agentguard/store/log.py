"""``StoreLog``: the audit log of this process, on the store.

Outcomes may wait for a signature: an instance signs an outcome together with its next call. Where
no such call comes within 50 ms, where too many outcomes wait, and when the log is flushed or
closed, the outcome is signed alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import LOG, LogPlace, Record, parse_time
from agentguard.audit.head import Head
from agentguard.audit.kinds.announcements import ExpiryEntry
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.audit.map import Overlay
from agentguard.audit.state import DENYING, State
from agentguard.errors import DelegationError
from agentguard.signing import dsse
from agentguard.signing.dsse import JointSignature
from agentguard.signing.keys import Signer
from agentguard.storage import fork, reserve
from agentguard.storage.flusher import LOGGER
from agentguard.store.store import Job, Queued, Store, WriteAttempt
from agentguard.store.transaction import Transaction, View

MAX_UNSIGNED: Final = 256
"""Most outcomes that wait, of all instances together."""

_MOST_ENDED: Final = 64
"""The most keys of the map that one entry takes away."""

_MOST_BEARERS: Final = 4096

T = TypeVar("T")


class RefusalCache:
    """Bearers of names whom nobody refuses, as long as no key of what denies changes.

    Every call asks twice, before the policy and in its commit. Safe from many threads.
    """

    def __init__(self) -> None:
        # the root of a map, the versions of what denies there, and the bearers
        self._known: tuple[bytes | None, object, set[AbstractSet[str]]] = (None, None, set())

    def has_none(self, root: bytes | None, names: AbstractSet[str]) -> bool:
        """Whether it is known that the map of this root refuses no bearer of these names."""
        known, _versions, bearers = self._known
        return root is not None and root == known and names in bearers

    def of(self, view: Overlay, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason with which a bearer of these names is refused, or None."""
        values = view.below
        if self.has_none(values.root, names):
            return None
        _root, known, bearers = self._known
        versions = [values.version(kind) for kind in DENYING]
        if versions != known or len(bearers) >= _MOST_BEARERS:
            bearers = set()
        if names not in bearers:
            refused = State(view).refusal(names)
            if refused is not None:
                return refused
            bearers.add(frozenset(names))
        self._known = values.root, versions, bearers
        return None


class StoreLog:
    """An ``AuditLog`` on a store; ``state`` is the state directory, None for a store in memory."""

    def __init__(self, store: Store, state: Path | None = None) -> None:
        self._store = store
        self._state = state
        self._check_key: Callable[[str, bool], object] = _nothing
        self._lock = threading.RLock()  # no call that interrupts this thread waits for it
        # By the digest of the statement, oldest first; any thread may read. The place of each in
        # the queue is kept from the first: whatever interrupts a signing, one entry is written.
        self._unsigned: dict[str, tuple[UnsignedOutcome, Queued]] = {}
        self._refusals = RefusalCache()
        self._seen: tuple[Head, Checkpoint, datetime] | None = None
        fork.in_each_child(self._leave_to_parent)
        store.before_flush = self._sign_waiting
        store.before_commit = self._before_commit

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint that this process has seen."""
        return self._newest()[1]

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry that this process has seen."""
        return self._newest()[2]

    @property
    def seen(self) -> Head:
        """The newest head that this process has seen."""
        return self._store.seen

    def _newest(self) -> tuple[Head, Checkpoint, datetime]:
        seen, head = self._seen, self._store.seen
        if seen is None or seen[0] is not head:
            self._seen = seen = head, head.checkpoint, datetime.fromisoformat(head.at)
        return seen

    def append(
        self,
        record: Record,
        *,
        names: AbstractSet[str] | None = None,
        within: Callable[[Transaction], object] | None = None,
    ) -> LogPlace:
        """Make ``record`` durable, with all signed records enqueued before; return its place.

        While no other process writes the log, a bearer of ``names`` is refused who may act no more
        (``DelegationError``), and ``within`` writes pages, or raises to have nothing written.
        Raises ``StorageError`` (``storage.busy`` where this thread was interrupted in a commit),
        and what ``Entry.change`` raises.
        """

        def job(tx: Transaction) -> int:
            refused = None if names is None else self._refusals.of(tx, names)
            if refused is not None:
                raise DelegationError(refused[1], code=refused[0])
            if within is not None:
                within(tx)
            return _append(record, tx)

        return LogPlace(LOG, self._store.run(job))

    def look(self, work: Callable[[State], T]) -> T:
        """Return what ``work`` reads in what decides later calls, as of the newest head."""
        return self._store.look(lambda view: work(State(view)))

    def read(self, work: Callable[[View], T]) -> T:
        """Return what ``work`` reads in the state and in the pages, at one moment."""
        return self._store.look(work)

    def change_pages(self, job: Callable[[Transaction], T]) -> T:
        """Write pages and no entry, durably; return what the job returns."""
        return self._store.run(job)

    def proof(self, kinds: Iterable[int]) -> tuple[bytes, dict[str, bytes]]:
        """Return the signed note of the newest head, and the nodes that prove all of these kinds.

        The nodes are by address: every key of a kind is there, and no other one can be.
        """
        return self._store.proof(kinds)

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return the code and the reason with which a bearer of these names is refused, or None."""
        if self._refusals.has_none(self._store.head().map_root, names):
            return None
        return self._store.look(lambda view: self._refusals.of(view, names))

    def enqueue(self, record: Record | UnsignedOutcome) -> None:
        """Queue ``record``, which becomes durable with the next append, or within 50 ms.

        No append takes an unsigned outcome along before ``give_signature``.
        """
        if isinstance(record, Record):
            self._store.enqueue(partial(_append, record))
            return
        with self._lock:
            queued = self._store.enqueue(None)
            self._unsigned[record.sha256] = record, queued
        self._store.require_open(queued)
        if len(self._unsigned) > MAX_UNSIGNED:
            for outcome, _queued in list(self._unsigned.values())[:-MAX_UNSIGNED]:
                self._sign_alone(outcome)

    def unsigned(self, signer: Signer) -> Sequence[UnsignedOutcome]:
        """Return the enqueued outcomes that wait for a signature of ``signer``, oldest first."""
        if not self._unsigned:
            return ()
        waiting = [outcome for outcome, _queued in list(self._unsigned.values())]
        return [one for one in waiting if one.signer is signer][: dsse.MAX_SUBJECTS - 1]

    def give_signature(
        self, outcomes: Sequence[UnsignedOutcome], signature: JointSignature
    ) -> None:
        """Give ``outcomes`` their signature, but for those that got another meanwhile."""
        for outcome in outcomes:
            self._settle(outcome, partial(_append, outcome.signed(signature)))

    def _sign_waiting(self) -> None:
        with self._lock:  # after an ``enqueue`` that is under way
            waiting = list(self._unsigned.values())
        for outcome, _queued in waiting:
            self._sign_alone(outcome)

    def _sign_alone(self, outcome: UnsignedOutcome) -> None:
        """Sign an outcome alone; where its signer fails, its call stays in doubt."""
        job: Job = _leave_out
        try:
            job = partial(_append, outcome.signed())
        except Exception:  # noqa: BLE001  a signer may be a service, and any failure is logged
            LOGGER.exception("an outcome could not be signed: its call stays in doubt")
        self._settle(outcome, job)

    def _settle(self, outcome: UnsignedOutcome, job: Job) -> None:
        """Give a waiting outcome its job, unless it has one."""
        with self._lock:
            if outcome.sha256 in self._unsigned:
                queued = self._unsigned[outcome.sha256][1]
                if queued.job is None:
                    queued.job = job
                self._unsigned.pop(outcome.sha256, None)

    def flush(self) -> None:
        """Make durable what is enqueued now; raises as ``append`` does."""
        self._store.flush()

    def probe(self) -> None:
        """Write, and add no entry; raises ``StorageError``, which ``newest_attempt`` has too."""
        if self._state is not None:
            reserve.require(self._state)
        self._store.probe()

    @property
    def newest_attempt(self) -> WriteAttempt:
        """The newest attempt to write."""
        return self._store.newest_attempt

    def sign_with(self, signer: Signer) -> None:
        """Sign later heads with another key of the log."""
        self._store.sign_with(signer)

    def check_before_signing(self, check: Callable[[str, bool], object]) -> None:
        """Have ``check`` called before each commit, to see whether the log's key still counts.

        It gets the time of the commit, and whether another process has signed with a key that is
        new here. It may call ``sign_with``, must not append, and raises ``StorageError`` to stop
        the commit.
        """
        self._check_key = check

    def _before_commit(self, at: str, has_new_keys: bool) -> None:  # noqa: FBT001  as it is called
        if self._state is not None:
            reserve.require(self._state)
        self._check_key(at, has_new_keys)

    def _leave_to_parent(self) -> None:
        """In a forked process, leave what waits to the parent; the fork opens a log of its own."""
        self._lock = threading.RLock()
        self._unsigned = {}
        self._store.leave_to_parent()

    def require_uninterrupted(self) -> None:
        """Raise ``StorageError`` (``storage.busy``) where this thread is amid a commit."""
        self._store.require_uninterrupted()

    def give_back_after_close(self, give_back: Callable[[], None]) -> None:
        """Have a claim of the state given back once nothing more is written."""
        self._store.after_close = give_back

    def close(self) -> None:
        """Flush, and close the store; raises ``StorageError`` if the flush failed."""
        self._store.close()

    @property
    def closed(self) -> bool:
        """Whether the log is closed."""
        return self._store.closed


def _append(record: Record, tx: Transaction) -> int:
    state = State(tx)
    if record.entry is not None:
        record.entry.change(state)
    index = tx.append(record)
    if tx.ends:  # whoever adds a key that ends takes away some that have ended
        now = parse_time(tx.at)
        # a key may have had several ends, and whoever writes the file may add some
        hints = dict.fromkeys(tx.ended(now, _MOST_ENDED))
        ended = [one for one in hints if state.is_over(one, now)]
        if ended:
            state.end(ended, now)
            tx.append(ExpiryEntry.new(ended, at=tx.at))
    return index


def _leave_out(_tx: Transaction) -> None:
    """The job of an outcome whose signer has failed."""


def _nothing(_at: str, _has_new_keys: bool) -> None:  # noqa: FBT001  as the check gets it
    """The check before each commit where ``check_before_signing`` was not called."""
