"""The writer of one shard: leader/follower group commit, the Merkle tree, the checkpoints.

The thread that appends first leads: it takes all pending records, hashes them into the tree, signs
one checkpoint, and has the backend (``backend.py``: memory or SQLite) write the batch. Threads that
append meanwhile wait for the leader, or lead the next batch (``commit_turn.py``).

A signal handler or an object's finalizer may interrupt the leader and call the log again. Such a
call would wait for its own thread, and is refused (``require_uninterrupted``).

After ``os.fork`` the child's copy of the log refuses every call: two writers on one shard would
split the log into two histories. A commit that a crash cuts short is settled in ``shard_file.py``,
when a process takes the shard again. ``lease.py`` says which shard a process writes, ``flusher.py``
flushes in the background and closes the open logs when the process ends.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from agentguard.audit import checkpoint, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import BEGINNING, LogPlace, Record
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.errors import StorageError
from agentguard.signing.dsse import JointSignature
from agentguard.signing.keys import Signer
from agentguard.storage import flusher
from agentguard.storage.backend import Backend, Head
from agentguard.storage.commit_turn import CommitTurn, QueuedRecord, UncertainCommit, WriteAttempt
from agentguard.storage.owned_lock import busy, holds_sqlite_lock
from agentguard.storage.unsigned import UnsignedOutcomes, sign_alone

MAX_BATCH: Final = 256
MAX_PENDING: Final = 10_000
"""Most records that wait while the backend fails; the log refuses more."""


class ShardLog:
    """An ``AuditLog``: the one writer of one shard."""

    def __init__(self, backend: Backend, signer: Signer, *, shard: int = 0) -> None:
        self._backend = backend
        self._signer = signer
        self._check_key: Callable[[str], None] = _nothing
        self._not_before = BEGINNING
        self._shard = shard
        # Write `with self._lock`, never `with self._changed`: an interrupt in the Python code of
        # the condition's `__enter__` or `__exit__` could leave the lock held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: list[QueuedRecord] = []
        self._unsigned = UnsignedOutcomes()
        self._turn: CommitTurn | None = None
        self.newest_attempt = WriteAttempt()
        self._uncertain: UncertainCommit | None = None
        self._closed = ""
        self._wake = flusher.Wake()
        self._flusher: threading.Thread | None = None
        weakref.finalize(self, self._wake.set)
        self._adopt(backend.read_head())
        flusher.register(self, durable=backend.durable)

    def _adopt(self, head: Head) -> None:
        self._head = head
        self._last_at = datetime.fromisoformat(max(head.at, self._not_before))

    def continue_from(self, at: str) -> None:
        """Let no new entry be older than another shard's ``at`` (as ``timestamp`` writes it)."""
        self._not_before = max(at, self._not_before)
        self._adopt(self._head)

    @property
    def shard(self) -> int:
        """The shard's number."""
        return self._shard

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""
        return self._head.checkpoint

    @property
    def last_at(self) -> datetime:
        """The time of the newest durable entry, or the time given to ``continue_from`` if later."""
        return self._last_at

    def sign_with(self, signer: Signer) -> None:
        """Sign later checkpoints with another key of the log."""
        self._signer = signer

    def check_before_signing(self, check: Callable[[str], None]) -> None:
        """Have ``check`` called before each commit, to see whether the log's key still counts.

        ``check`` gets the time of the newest entry. ``check`` may call ``sign_with``, must not
        append, and raises ``StorageError`` to stop the commit.
        """
        self._check_key = check

    def append(self, record: Record) -> LogPlace:
        """Make ``record`` durable, with all signed records enqueued before; return its place.

        Raises ``StorageError``: ``storage.busy`` where this thread was interrupted in a commit.
        """
        self.require_uninterrupted()
        queued = QueuedRecord(record, has_waiter=True)
        self._submit(queued)
        try:
            while not (queued.is_settled or self._wait_for(queued)):
                self._lead(queued)
        except BaseException:
            self._recover()
            self._withdraw(queued)
            raise
        if queued.place is None:
            raise queued.error or StorageError("the record was not written")
        return queued.place

    def enqueue(self, record: Record | UnsignedOutcome) -> None:
        """Queue ``record``, which becomes durable with the next append, or within 50 ms.

        No append takes an unsigned outcome along before ``give_signature``.
        """
        with self._lock:
            # first, because an interrupt afterwards must not leave a record that nobody flushes
            if self._backend.durable and not self._wake.is_set():
                self._wake.set()
            if isinstance(record, UnsignedOutcome):
                self._require_room()
                self._unsigned[record.sha256] = record
            else:
                self._submit(QueuedRecord(record, has_waiter=False))
        if self._flusher is None and self._backend.durable:
            self._start_flusher()
        self._sign_alone(self._unsigned.excess())

    def _start_flusher(self) -> None:
        with self._lock:
            if self._flusher is None and not self._closed:
                self._flusher = flusher.start(self, self._wake)

    def unsigned(self, signer: Signer) -> Sequence[UnsignedOutcome]:
        """Return the enqueued outcomes that wait for a signature of ``signer``, oldest first."""
        return self._unsigned.of(signer)

    def give_signature(
        self, outcomes: Sequence[UnsignedOutcome], signature: JointSignature
    ) -> None:
        """Queue ``outcomes`` with their signature, but for those that got another meanwhile."""
        for outcome in outcomes:
            self._queue_signed(outcome, outcome.signed(signature))

    def _sign_alone(self, outcomes: Sequence[UnsignedOutcome]) -> None:
        """Sign outcomes that no call of the same signer has followed in time."""
        for outcome in outcomes:
            self._queue_signed(outcome, sign_alone(outcome))

    def _queue_signed(self, outcome: UnsignedOutcome, record: Record | None) -> None:
        queued = () if record is None else (QueuedRecord(record, has_waiter=False),)
        with self._lock:
            if outcome.sha256 in self._unsigned:
                # a function call between the two could be interrupted, and the outcome lost
                self._pending += queued
                del self._unsigned[outcome.sha256]

    def flush(self, *, is_trial: bool = False) -> None:
        """Make durable what is enqueued now; raises as ``append`` does.

        A trial has the backend write first, whether anything is enqueued or not.
        """
        self.require_uninterrupted()
        with self._lock:  # after an ``enqueue`` that is under way, which has set ``_wake`` already
            waiting = self._unsigned.waiting()
        self._sign_alone(waiting)
        left: set[QueuedRecord] | None = None
        while True:
            with self._lock:
                while self._turn:
                    self._changed.wait()
                # what came later is left to others: the flusher would lead as long as they append
                left = set(self._pending) if left is None else left.intersection(self._pending)
                if not (left or is_trial):
                    return
            try:
                self._lead(None, is_trial=is_trial)
            except BaseException:
                self._recover()
                raise
            is_trial = False

    def close(self) -> None:
        """Flush, and close the backend; raises ``StorageError`` if the flush failed.

        Where this thread was interrupted in a commit, the log stays open (``storage.busy``).
        """
        self.require_uninterrupted()
        with self._lock:
            if self._closed:
                return
            self._closed = "the log is closed: open the guard again"
        try:
            self.flush()
        finally:
            with self._lock:
                while self._turn is not None:
                    self._changed.wait()
            self._wake.set()
            self._backend.close()
            flusher.unregister(self)

    def require_uninterrupted(self) -> None:
        """Raise ``StorageError`` (``storage.busy``) where this thread could wait for itself.

        Either this thread leads, and a signal handler or an object's finalizer has interrupted the
        commit; or this thread was interrupted while it held SQLite's lock, which a leader needs.
        """
        turn = self._turn
        leads = turn is not None and turn.thread == threading.get_ident()
        if leads or holds_sqlite_lock():
            raise busy("the log was written or read")

    def abandon(self) -> None:
        """Refuse every later call: this process is a fork of the log's writer."""
        if self._closed:
            return  # another file may have the log's descriptors by now
        self._closed = "this log belongs to the parent of this forked process"
        # threads of the parent, which do not exist here, may hold the old locks
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._turn = None
        self._pending = []
        self._unsigned = UnsignedOutcomes()
        self._backend.abandon()

    def _submit(self, queued: QueuedRecord) -> None:
        with self._lock:
            self._require_room()
            self._pending.append(queued)

    def _require_room(self) -> None:
        if len(self._pending) >= MAX_PENDING:
            message = f"{MAX_PENDING} records wait: find out why the log can't be written"
            raise StorageError(message, code="storage.full")
        # last, because the interrupt of a function call could close the log
        if self._closed:
            raise StorageError(self._closed, code="storage.closed")

    def _withdraw(self, queued: QueuedRecord) -> None:
        """Take back the record of an interrupted caller, unless a commit has taken the record."""
        with self._lock:
            if queued in self._pending:
                self._pending.remove(queued)

    def _wait_for(self, queued: QueuedRecord) -> bool:
        """Wait until ``queued`` is settled (True) or this thread has to lead (False)."""
        with self._lock:
            while not queued.is_settled and self._turn:
                self._changed.wait()
            return queued.is_settled

    def _lead(self, own: QueuedRecord | None, *, is_trial: bool = False) -> None:
        """Commit one batch, unless another thread leads by now; a trial may have none."""
        turn = CommitTurn(own)
        try:
            with self._lock:
                if self._turn is not None:
                    return
                self._turn = turn
                batch = self._pending[:MAX_BATCH]
                number = len(batch)
                turn.batch = batch
                del self._pending[:number]  # in place: a finalizer may append meanwhile
            if self._uncertain is not None:
                self._resolve(self._uncertain)
                batch = [queued for queued in batch if queued.place is None]
            if is_trial:
                self._backend.try_write()
            if batch:
                self._commit(batch)
            self.newest_attempt = WriteAttempt() if batch or is_trial else self.newest_attempt
        except StorageError as error:
            turn.failure = error
            self.newest_attempt = WriteAttempt(error)
            if own is None:
                raise
        finally:
            self._settle(turn)

    def _recover(self) -> None:
        """End this thread's turn where an interrupt has cut the turn short."""
        turn = self._turn
        if turn is not None and turn.thread == threading.get_ident():
            self._settle(turn)

    def _commit(self, batch: Sequence[QueuedRecord]) -> None:
        before = self._head
        tree = before.tree.copy()
        at = before.at
        for queued in batch:
            tree.append(merkle.leaf_hash(queued.record.body))
            at = max(at, queued.record.summary.at)
        self._check_key(at)
        head = Head(tree, Checkpoint(before.checkpoint.origin, tree.size, tree.root()), at)
        records = [queued.record for queued in batch]
        try:
            self._backend.write(
                records, head, lambda: checkpoint.sign(head.checkpoint, self._signer)
            )
            self._adopt(head)
            self._give_receipts(batch, before)
        except BaseException as error:
            # the commit itself may have succeeded: the backend tells
            self._uncertain = UncertainCommit(batch, before, head)
            try:
                durable = self._resolve(self._uncertain)
            except StorageError as unread:
                if not isinstance(error, Exception):
                    raise error from None  # an interrupt stays one
                message = f"whether the entry is in the log is not known yet: {unread}"
                raise StorageError(message, code="storage.unknown") from unread
            if not durable and isinstance(error, Exception) and not isinstance(error, StorageError):
                message = f"the log can't be written ({type(error).__name__}: {error})"
                raise StorageError(message) from error
            if not durable or not isinstance(error, Exception):
                raise

    def _resolve(self, commit: UncertainCommit) -> bool:
        """Read the head again, and return whether ``commit`` is durable; raises ``StorageError``.

        The log writes nothing until this function succeeds; otherwise records that are durable
        already could be written a second time.
        """
        head = self._backend.read_head()
        durable = head.checkpoint == commit.after.checkpoint
        if not durable and head.checkpoint != commit.before.checkpoint:
            message = "somebody else writes this shard, past its lock: find out who, and stop it"
            raise StorageError(message, code="storage.locked")
        self._adopt(head)
        if durable:
            self._give_receipts(commit.batch, commit.before)
        self._uncertain = None
        return durable

    def _give_receipts(self, batch: Sequence[QueuedRecord], before: Head) -> None:
        for index, queued in enumerate(batch, before.checkpoint.size):
            queued.place = LogPlace(self._shard, index)

    def _settle(self, turn: CommitTurn) -> None:
        """Settle the batch, wake the waiting threads, and end the turn.

        If the commit failed, records for which no thread waits go back to the front of the queue.
        Where an interrupt cut this function short, a second call does the rest.
        """
        with self._lock:
            if self._turn is not turn:
                return
            again = turn.settle()
            self._changed.notify_all()
            self._pending[:0] = again
            self._turn = None

    @property
    def closed(self) -> bool:
        """True once the log was closed, or abandoned by a fork."""
        return bool(self._closed)


def _nothing(_at: str) -> None:
    """The check before each commit where ``check_before_signing`` was not called."""
