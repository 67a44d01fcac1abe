"""The writer of one shard: leader/follower group commit, the Merkle tree, the checkpoints.

Whoever appends first leads: it takes everything that is pending, hashes it into the tree, signs
one checkpoint and has the backend write the batch; those who came meanwhile wait for it or lead
the next batch. What the backend is (memory, SQLite) is its own affair (``backend.py``).

Whoever leads may be interrupted by a signal handler, or by the end of an object, that comes to the
log again. It does not wait there for itself: it is refused, and a close happens when the lead ends.

After a fork the child's copy refuses: two writers on one shard would fork the log. Which shard
a process writes is settled in ``lease.py``.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from agentguard.audit import checkpoint, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Receipt, Record
from agentguard.errors import StorageError
from agentguard.signing.keys import Signer
from agentguard.storage import fork
from agentguard.storage.backend import BEGINNING, Backend, Head
from agentguard.storage.reentry import is_inside

FLUSH_AFTER: Final = 0.05
"""Seconds within which an enqueued record becomes durable."""

MAX_BATCH: Final = 256
MAX_PENDING: Final = 10_000
"""Records that wait while the backend fails; past it the log takes no more."""


class _Slot:
    """A record on its way, and what became of it."""

    __slots__ = ("done", "error", "receipt", "record", "waiting")

    def __init__(self, record: Record, *, waiting: bool) -> None:
        self.record = record
        self.waiting = waiting
        self.done = False
        self.receipt: Receipt | None = None
        self.error: StorageError | None = None


class _Turn:
    """One thread's lead: the batch that it took, and how its commit failed, if it did.

    ``closes`` asks it to close the log at its end, for somebody who could not wait for it.
    """

    __slots__ = ("batch", "closes", "failure", "own", "thread")

    def __init__(self, own: _Slot | None) -> None:
        self.own = own
        self.thread = threading.get_ident()
        self.batch: list[_Slot] = []
        self.failure: StorageError | None = None
        self.closes = False


class _Attempt(NamedTuple):
    """A commit of which nobody knows yet whether it is durable."""

    batch: Sequence[_Slot]
    before: Head
    after: Head


class ShardLog:
    """An ``AuditLog``: one shard, and its one writer."""

    def __init__(self, backend: Backend, signer: Signer, *, shard: int = 0) -> None:
        self._backend = backend
        self._signer = signer
        self._before_signing: Callable[[str], None] = _nothing
        self._not_before = BEGINNING
        self._shard = shard
        # The lock is entered by itself, never through the condition, whose Python code an interrupt
        # could leave with the lock held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: list[_Slot] = []
        self._busy: _Turn | None = None
        self._unknown: _Attempt | None = None
        self._closed = ""
        self._wake = threading.Event()
        self._flusher: threading.Thread | None = None
        weakref.finalize(self, self._wake.set)
        self._adopt(backend.read_head())
        _LOGS.add(self)
        if backend.durable:
            _UNFLUSHED.add(self)
            _close_at_exit()

    def _adopt(self, head: Head) -> None:
        self._head = head
        self._last_at = datetime.fromisoformat(max(head.at, self._not_before))

    def go_on_from(self, at: str) -> None:
        """Let time go on from ``at`` (as ``timestamp`` writes it), which another shard has."""
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
        """The time of the newest durable entry, of this shard or of one that it went on from."""
        return self._last_at

    def sign_with(self, signer: Signer) -> None:
        """Sign the checkpoints from here on with another key of the log."""
        self._signer = signer

    def before_signing(self, look: Callable[[str], None]) -> None:
        """Have somebody see, before each commit, whether the key still counts.

        ``look`` is told the time of the newest entry. It may call ``sign_with``, appends nothing,
        and raises ``StorageError`` where nothing is to be committed.
        """
        self._before_signing = look

    def append(self, record: Record) -> Receipt:
        """Make ``record``, and everything enqueued before it, durable; return its place.

        Raises ``StorageError``: ``storage.busy`` within a commit of this thread's own.
        """
        if self._reentered():
            raise _busy()
        slot = _Slot(record, waiting=True)
        self._submit(slot)
        try:
            while not self._settled(slot):
                self._lead(slot)
        except BaseException:
            self._recover()
            self._withdraw(slot)
            raise
        if slot.receipt is None:
            raise slot.error or StorageError("the record was not written")
        return slot.receipt

    def enqueue(self, record: Record) -> None:
        """Hand over ``record``; it becomes durable with the next append, or within 50 ms."""
        self._submit(_Slot(record, waiting=False))
        if self._backend.durable and not self._wake.is_set():
            self._wake.set()
            if self._flusher is None:
                self._start_flusher()

    def flush(self) -> None:
        """Make everything enqueued durable; raises ``StorageError`` as ``append`` does."""
        while True:
            with self._lock:
                while self._busy:
                    if self._reentered():
                        raise _busy()
                    self._changed.wait()
                if not self._pending:
                    return
            try:
                self._lead(None)
            except BaseException:
                self._recover()
                raise

    def close(self) -> None:
        """Flush, and give the place back; raises ``StorageError`` if the flush failed.

        Within a commit of this thread's own it is done at the end of that one.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = "the log is closed: open the guard again"
            if self._handed_over():
                return
        self._end()

    def _end(self) -> None:
        try:
            self.flush()
        except StorageError as error:
            if error.code != "storage.busy":  # then it is handed over below
                raise
        finally:
            with self._lock:
                handed_over = self._handed_over()
            if not handed_over:
                self._wake.set()
                self._backend.close()
                _UNFLUSHED.discard(self)

    def _handed_over(self) -> bool:
        """Wait until nobody leads; True where this thread must not: then whoever leads closes."""
        while self._busy is not None:
            if self._reentered():
                self._busy.closes = True
                return True
            self._changed.wait()
        return False

    def abandon(self) -> None:
        """Refuse from here on: this process is a fork of the log's writer."""
        if self._closed:
            return  # its descriptors may be somebody else's by now
        self._closed = "this log is the one of a process of which this one is a fork"
        # the parent's threads held these, and do not exist here
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._busy = None
        self._pending = []
        self._backend.abandon()

    def _submit(self, slot: _Slot) -> None:
        with self._lock:
            if self._closed:
                raise StorageError(self._closed, code="storage.closed")
            if len(self._pending) >= MAX_PENDING:
                message = f"{MAX_PENDING} records wait to be written; see why the log can't be"
                raise StorageError(message, code="storage.full")
            self._pending.append(slot)

    def _withdraw(self, slot: _Slot) -> None:
        """Take back a record whose caller was interrupted, unless it is on its way already."""
        with self._lock:
            if slot in self._pending:
                self._pending.remove(slot)

    def _settled(self, slot: _Slot) -> bool:
        """Wait until ``slot`` is done (True) or somebody has to lead (False)."""
        with self._lock:
            while not slot.done and self._busy:
                if self._reentered():
                    raise _busy(on_its_way=slot not in self._pending)
                self._changed.wait()
            return slot.done

    def _reentered(self) -> bool:
        """Whether somebody leads who could not come to an end while this thread waits for it.

        It is this thread itself, which a signal handler or the end of an object has interrupted; or
        this thread was interrupted inside SQLite, where whoever leads has to go.
        """
        turn = self._busy
        return turn is not None and (turn.thread == threading.get_ident() or is_inside())

    def _lead(self, own: _Slot | None) -> None:
        """Commit one batch, unless somebody else has begun to."""
        turn = _Turn(own)
        try:
            with self._lock:
                if self._busy is not None:
                    return
                self._busy = turn
                batch = self._pending[:MAX_BATCH]
                number = len(batch)
                turn.batch = batch
                del self._pending[:number]  # in place: an object's end may enqueue meanwhile
            if self._unknown is not None:
                self._find_out(self._unknown)
                batch = [slot for slot in batch if slot.receipt is None]
            if batch:
                self._commit(batch)
        except StorageError as error:
            turn.failure = error
            if own is None:
                raise
        finally:
            self._conclude(turn)

    def _recover(self) -> None:
        """End a turn of this thread that an interrupt has cut off before its own end."""
        turn = self._busy
        if turn is not None and turn.thread == threading.get_ident():
            self._conclude(turn)

    def _conclude(self, turn: _Turn) -> None:
        self._settle(turn)
        if turn.closes:
            turn.closes = False
            try:
                self._end()
            except StorageError:  # whoever has asked for it is not there to be told
                _LOGGER.exception(_NOT_CLOSED)

    def _commit(self, batch: Sequence[_Slot]) -> None:
        before = self._head
        tree = before.tree.copy()
        at = before.at
        for slot in batch:
            tree.append(merkle.leaf_hash(slot.record.body))
            at = max(at, slot.record.summary.at)
        self._before_signing(at)
        head = Head(tree, Checkpoint(before.checkpoint.origin, tree.size, tree.root()), at)
        records = [slot.record for slot in batch]
        try:
            self._backend.write(
                records, head, lambda: checkpoint.sign(head.checkpoint, self._signer)
            )
            self._adopt(head)
            self._place(batch, before)
        except BaseException as error:
            # the commit itself may have succeeded: only the backend knows
            self._unknown = _Attempt(batch, before, head)
            try:
                durable = self._find_out(self._unknown)
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

    def _find_out(self, attempt: _Attempt) -> bool:
        """Read the head again, and say whether ``attempt`` is durable; raises ``StorageError``.

        Until this has succeeded nothing is written: what is in the log already would go into it
        once more.
        """
        head = self._backend.read_head()
        durable = head.checkpoint == attempt.after.checkpoint
        if not durable and head.checkpoint != attempt.before.checkpoint:
            message = "somebody else writes this shard, past its lock: find out who, and stop it"
            raise StorageError(message, code="storage.locked")
        self._adopt(head)
        if durable:
            self._place(attempt.batch, attempt.before)
        self._unknown = None
        return durable

    def _place(self, batch: Sequence[_Slot], before: Head) -> None:
        first = before.checkpoint.size
        for offset, slot in enumerate(batch):
            slot.receipt = Receipt(self._shard, first + offset)

    def _settle(self, turn: _Turn) -> None:
        """Tell everybody in the batch; what was only handed over goes back to the front.

        Called once more where an interrupt cut it short, and then does the rest.
        """
        with self._lock:
            if self._busy is not turn:
                return
            again: list[_Slot] = []
            for slot in turn.batch:
                if slot.receipt is not None:
                    slot.done = True
                elif slot is turn.own or (slot.waiting and turn.failure is not None):
                    slot.done = True
                    slot.error = turn.failure
                else:
                    again.append(slot)
            self._changed.notify_all()
            self._pending[:0] = again
            self._busy = None

    def _start_flusher(self) -> None:
        with self._lock:
            if self._flusher is None and not self._closed:
                flusher = threading.Thread(
                    target=_flush_forever,
                    args=(weakref.ref(self), self._wake),
                    name="agentguard-flush",
                    daemon=True,
                )
                self._flusher = flusher
                flusher.start()

    @property
    def closed(self) -> bool:
        """True once the log was closed, or abandoned by a fork."""
        return bool(self._closed)


def _nothing(_at: str) -> None:
    """What is done before each commit where nobody has asked for more."""


def _busy(*, on_its_way: bool = False) -> StorageError:
    """Refuse what came within a commit, which it can't wait for."""
    message = "this thread was interrupted while the log is written: try again when that is done"
    if on_its_way:
        message = f"whether the entry is in the log is not known yet: {message}"
    return StorageError(message, code="storage.unknown" if on_its_way else "storage.busy")


def _flush_forever(reference: weakref.ref[ShardLog], wake: threading.Event) -> None:
    """Flush what is enqueued and not taken along by an append in time.

    ``wake`` is set by the first record that is enqueued, and when the log is closed or gone.
    """
    pause = threading.Event()  # never set: a way to sleep
    while wake.wait():
        log = reference()
        if log is None or log.closed:
            return
        pause.wait(FLUSH_AFTER * 0.8)
        wake.clear()
        try:
            log.flush()
        except StorageError:
            pause.wait(1.0)  # the records stay pending; the next append reports the failure
            wake.set()
        del log


_LOGGER = logging.getLogger("agentguard")
_NOT_CLOSED: Final = "a log could not be closed: its newest outcomes may be lost"
_LOGS: weakref.WeakSet[ShardLog] = weakref.WeakSet()
# A durable log lives until it is closed: dropping a guard must not drop what it still has to write.
_UNFLUSHED: set[ShardLog] = set()


def _close_all() -> None:
    for log in list(_UNFLUSHED):
        try:
            log.close()
        except StorageError:  # the others must be flushed all the same
            _LOGGER.exception(_NOT_CLOSED)


_READY: set[int] = set()


def _close_at_exit() -> None:
    """Have the logs closed at the end of a multiprocessing child, too: it runs no ``atexit``."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and os.getpid() not in _READY:
        _READY.add(os.getpid())
        util.Finalize(None, _close_all, exitpriority=0)


def _abandon_all() -> None:
    for log in list(_LOGS):
        log.abandon()


atexit.register(_close_all)
fork.at_fork(fork.Stage.LOGS, in_child=_abandon_all)
