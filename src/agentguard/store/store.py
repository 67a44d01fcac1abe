"""``Store``: commits jobs in groups, and reads what the newest signed head covers.

A job reads and changes one ``Transaction``. Its checks and what follows from them are one commit:
it is all or nothing. The thread that comes first leads: it runs the jobs that wait by then, under
the lock of all writers, and signs one head. No other head is accepted than one that continues the
head that this process (or its anchor) has seen.

The hook before a fork takes the store's locks and closes its connections; both processes open
their own. A process that was forked past the hooks is refused (``storage.closed``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.entry import LOG
from agentguard.audit.head import Head
from agentguard.audit.map import EMPTY_ROOT, Cache, Map, encode
from agentguard.audit.merkle import CompactRange
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustedKey
from agentguard.signing.keys import PublicKey, Signer
from agentguard.storage import flusher, fork
from agentguard.storage.anchor import ADOPT, ROLLED_BACK
from agentguard.storage.owned_lock import OwnedLock, busy
from agentguard.store import check, tree
from agentguard.store.anchor import Anchor
from agentguard.store.engine import Engine, Query, T, Writing
from agentguard.store.transaction import Batch, Transaction, View

_LOGGER: Final = logging.getLogger("agentguard")

MOST_AT_ONCE: Final = 256
MOST_WAITING: Final = 10_000
"""The most jobs that wait while the store can't be written; more are refused."""

_FOLLOWED: Final = 64
"""The entries of other writers that are hashed one by one; beyond, there is a proof."""

_ADD_ENTRY: Final = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_ATTACHMENT: Final = "INSERT INTO attachment VALUES (?, ?, ?, ?, ?, ?)"
_ADD_TREE: Final = "INSERT INTO tree VALUES (?, ?, ?, ?)"
_PUT_NODE: Final = (
    "INSERT INTO map VALUES (?, ?, ?) ON CONFLICT (log, address) DO UPDATE SET node = excluded.node"
)
_DROP_NODE: Final = "DELETE FROM map WHERE log = ? AND address = ?"
_ADD_ENDING: Final = "INSERT INTO ending VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_DROP_ENDING: Final = "DELETE FROM ending WHERE log = ? AND ends = ? AND key = ?"

_OF_PARENT: Final = "this log belongs to the parent of this forked process"


class _Seen(NamedTuple):
    """A head that is accepted, with its note, the peaks of its tree and the key that signed it."""

    head: Head
    note: bytes
    peaks: CompactRange
    key: PublicKey


class _Attempt(NamedTuple):
    """A commit that may be durable: the index and the hash of its first entry tell."""

    first: int
    leaf: bytes
    batch: Sequence[Queued]
    newest: _Seen


Job = Callable[[Transaction], Any]


class WriteAttempt:
    """An attempt to write: ``at`` (seconds of the monotonic clock), and how it failed.

    ``failure`` is a copy of the error, whose traceback would keep the batch in memory.
    """

    __slots__ = ("at", "failure")

    def __init__(self, failure: StorageError | None = None) -> None:
        self.at = time.monotonic()
        self.failure = failure and StorageError(str(failure), code=failure.code)


def _nothing(*_given: object) -> None:
    """The hook of a store that has none."""


def _touch(rows: Writing) -> None:
    rows.touch()
    rows.commit()


def first_head(log: str, signer: Signer, at: str) -> bytes:
    """Return the signed head of an empty store."""
    return heads.sign(Head(log, 0, merkle.EMPTY_ROOT, EMPTY_ROOT, at), signer)


class Queued:
    """A job on its way into the store; it is settled with a result or an error.

    Without a ``job`` it waits until it is given one, and no commit takes it.
    """

    __slots__ = ("error", "has_waiter", "is_settled", "job", "result")

    def __init__(self, job: Job | None, *, has_waiter: bool) -> None:
        self.job = job
        self.has_waiter = has_waiter
        self.is_settled = False
        self.result: Any = None
        self.error: Exception | None = None


class Store:
    """The store of one domain; safe to use from many threads.

    ``log`` is the name of the log. ``keys`` reads the keys that sign its heads, again where another
    key has signed one. The newest head may be signed by a key that was declared compromised only
    where the anchor has it, or where ``trusts_compromised``. Without a ``signer`` the store is read
    alone. ``clock`` returns an aware time. Raises ``StorageError`` as ``head`` does.
    """

    before_commit: Callable[[str, bool], object]
    """Called before each commit with its time, and whether another process has signed with a key
    that replaced this one's; may call ``sign_with``, and raises ``StorageError`` to stop the
    commit."""

    before_flush: Callable[[], object]
    """Called before a flush, and may enqueue."""

    after_close: Callable[[], object]
    """Called when this process has closed the store."""

    def __init__(
        self,
        engine: Engine,
        log: str,
        keys: Callable[[], Iterable[TrustedKey]],
        signer: Signer | None = None,
        *,
        anchor: Anchor | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        trusts_compromised: bool = False,
    ) -> None:
        self._engine = engine
        self._log = log
        self._read_keys = keys
        self._keys = tuple(keys())
        self._signer = signer
        self._anchor = anchor
        self._clock = clock
        self._trusts_compromised = trusts_compromised
        self.before_commit = self.before_flush = self.after_close = _nothing
        self.newest_attempt = WriteAttempt()
        self._cache = Cache()
        self._pid = os.getpid()
        self._closed = ""
        self._is_forkable = False
        self._seen: _Seen | None = None
        self._anchored = None if anchor is None else anchor.read()
        self._begin_anew()
        try:
            found = self.head()
        except BaseException:
            engine.close()
            raise
        if anchor is not None and self._anchored is None and found.size > 0:
            _LOGGER.warning(
                "the anchor %s keeps nothing of a log with %d entries: from here on it vouches for "
                "what it is shown now. If it was there before, find out who removed it",
                anchor.path,
                found.size,
            )
        _STORES.add(self)
        if engine.is_shared:
            flusher.register(self)

    def _begin_anew(self) -> None:
        # Whoever takes several of these locks takes them in this order.
        self._turn = OwnedLock("the store was written")
        self._reading = OwnedLock("the store was read")
        # Write `with self._mutex`, never `with self._changed`: an interrupt in the Python code of
        # the condition's `__enter__` or `__exit__` could leave the lock held.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._waiting: list[Queued] = []
        self._batch: list[Queued] = []
        self._uncertain: _Attempt | None = None
        self._leader = 0
        self._wake = flusher.Wake()
        self._flusher: threading.Thread | None = None

    @property
    def seen(self) -> Head:
        """The newest head that this process has seen, without a look at the database."""
        assert self._seen is not None  # noqa: S101  ``__init__`` has read one
        return self._seen.head

    # --- reading ---------------------------------------------------------------------------------

    def head(self) -> Head:
        """Return the newest head, verified, which continues what this process has seen.

        Raises ``StorageError``: ``storage.rolled_back`` for an older or another store than was
        seen, ``storage.corrupt`` for a head that no key of the log has signed.
        """
        self._require_usable()
        if self._seen is not None:
            if not self._engine.is_shared:
                return self._seen.head  # nobody else writes it, and a look waits for no commit
            with self._reading.held():
                seen = self._seen
                if [note for note, _peaks in self._engine.query(check.HEAD, (LOG,))] == [seen.note]:
                    return seen.head
        return self._read(lambda newest, _query: newest.head)

    def look(self, work: Callable[[View], T]) -> T:
        """Return what ``work`` reads in the newest state."""
        return self._read(lambda seen, query: work(self._view(seen, query)))

    def proof(self, kinds: Iterable[int]) -> tuple[bytes, dict[str, bytes]]:
        """Return the signed note of the newest head, and the nodes that prove all of these kinds.

        The nodes are by address: every key of a kind is there, and no other one can be.
        """

        def collect(seen: _Seen, query: Query) -> tuple[bytes, dict[str, bytes]]:
            map_ = self._view(seen, query).below
            found = {at: encode(node) for one in kinds for at, node in map_.nodes(f"{one:02x}")}
            return seen.note, found

        return self._read(collect)

    def _read(self, work: Callable[[_Seen, Query], T]) -> T:
        self._require_usable()
        with self._reading.held():
            seen = self._seen  # first: a commit may come before the look at the head

            def read(query: Query) -> T:
                newest = self._followed(seen, query)
                self._accept(newest)
                return work(newest, query)

            return self._engine.read(read)

    def _view(self, seen: _Seen, query: Query) -> View:
        map_ = Map(seen.head.map_root, check.fetching(query), self._cache)
        return View(map_, self._engine.pages_at(query))

    def _accept(self, newest: _Seen) -> None:
        with self._mutex:
            if self._seen is None or self._seen.head.size <= newest.head.size:
                self._seen = newest

    def _followed(self, seen: _Seen | None, query: Query) -> _Seen:
        """Return the head in the database, if it is signed and continues the one that was seen."""
        if self._seen is not None and not self._engine.is_shared:
            return self._seen  # of this moment: a commit holds the lock that this reading has
        rows = query(check.HEAD, (LOG,))
        if len(rows) != 1 or {*map(type, rows[0])} != {bytes}:
            raise _corrupt("the store has no head")
        note, peaks = rows[0]
        if seen is not None and seen.note == note:
            return seen
        try:
            head, key = self._verified(note)
            grown = CompactRange.decode(head.size, peaks)
        except StorageError:
            raise
        except AgentguardError as error:
            raise _corrupt(
                f"the head of the store is not one that the log has signed: {error}"
            ) from error
        if grown.root() != head.root:
            raise _corrupt("the peaks beside the head are not those of its tree")
        newest = _Seen(head, note, grown, key)
        before, peaks = (self._anchored, None) if seen is None else (seen.head, seen.peaks)
        if before is not None and before != head:
            _require_continuation(before, peaks, head, query)
        anchored_by = None if self._anchor is None else self._anchor.key
        signed_before = anchored_by if seen is None else seen.key
        if signed_before is not None and self._is_replaced(key, signed_before):
            raise _unvouched("a key that was replaced before them")
        return newest

    def _is_replaced(self, key: PublicKey, by: PublicKey) -> bool:
        """Whether one key of the log was in force before another; keys are listed in this order."""
        listed = self._public_keys()
        return key not in listed or listed.index(key) < listed.index(by)

    def _verified(self, note: bytes) -> tuple[Head, PublicKey]:
        """Return the head of a note, and who signed it.

        Raises as ``heads.verify``, and ``StorageError`` (``storage.unvouched``).
        """
        try:
            head, key = heads.verify(note, self._public_keys(), self._log)
        except VerificationError as error:
            if error.code != "signature.missing":
                raise
            self._keys = tuple(self._read_keys())  # somebody may have rotated the key of the log
            head, key = heads.verify(note, self._public_keys(), self._log)
        is_sound = any(
            trusted.key == key and trusted.compromised_since is None for trusted in self._keys
        )
        if not is_sound and not self._trusts_compromised and head != self._anchored:
            raise _unvouched("a compromised key")
        return head, key

    def _public_keys(self) -> list[PublicKey]:
        return [trusted.key for trusted in self._keys]

    # --- writing ---------------------------------------------------------------------------------

    def sign_with(self, signer: Signer) -> None:
        """Sign later heads with another key of the log."""
        self._signer = signer
        self._keys = tuple(self._read_keys())

    def run(self, job: Callable[[Transaction], T]) -> T:
        """Run a job, commit what it wants, and return its result once that is durable.

        The job may run again after an interrupt, so it changes nothing but its transaction. Raises
        what the job raises, and ``StorageError``: ``storage.busy`` where this thread was
        interrupted in a commit, ``storage.unknown`` where nobody knows whether the commit is
        durable.
        """
        queued = Queued(job, has_waiter=True)
        self._submit(queued)
        try:
            while not (queued.is_settled or self._wait_for(queued)):
                self._lead(queued)
        except BaseException:
            self._settle(queued, None)  # an interrupt may have cut that short
            with self._mutex:
                if queued in self._waiting:
                    self._waiting.remove(queued)
            raise
        if queued.error is not None:
            raise queued.error
        result: T = queued.result
        return result

    def enqueue(self, job: Job | None) -> Queued:
        """Have a job done with the next commit, or within 50 ms; its own error is logged.

        None keeps the place of a job that is given later (``Queued.job``).
        """
        self._wake_flusher()  # first: an interrupt afterwards must not leave a job that nobody does
        queued = Queued(job, has_waiter=False)
        self._submit(queued)
        return queued

    def _wake_flusher(self) -> None:
        """Have the store flushed within 50 ms; one in memory is flushed by the next job."""
        if not self._engine.is_shared:
            return
        if not self._wake.is_set():
            self._wake.set()
        with self._mutex:
            if self._flusher is None and not self._closed:
                weakref.finalize(self, self._wake.set)  # it ends with a store that is dropped
                self._flusher = flusher.start(self, self._wake)

    def probe(self) -> None:
        """Write what is there already; raises ``StorageError``, which ``newest_attempt`` has."""
        self._require_usable()
        try:
            with self._turn.held():
                self._engine.write(_touch)
        except StorageError as error:
            self.newest_attempt = WriteAttempt(error)
            raise
        self.newest_attempt = WriteAttempt()

    def flush(self) -> None:
        """Do what is enqueued now; raises ``StorageError``."""
        self._require_usable()
        self.before_flush()
        with self._mutex:
            left = {queued for queued in self._waiting if queued.job is not None}
        while True:
            with self._mutex:
                while self._leader:
                    self._changed.wait()
                left.intersection_update(self._waiting)
                if not left:
                    return
            try:
                self._lead(None)
            except BaseException:
                self._settle(None, None)  # an interrupt may have cut that short
                raise

    def close(self) -> None:
        """Flush, and close the database; raises ``StorageError`` if the flush failed."""
        self.require_uninterrupted()
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = "the store is closed: open the guard again"
            self._wake.set()
            with self._turn.held(), self._reading.held():
                self._engine.close()
            flusher.unregister(self)
            self.after_close()

    @property
    def closed(self) -> bool:
        """Whether the store is closed."""
        return bool(self._closed)

    def _require_usable(self) -> None:
        self.require_uninterrupted()
        if os.getpid() != self._pid:
            message = "this process was forked past Python's hooks, and the store is its parent's"
            raise StorageError(message, code="storage.closed")
        if self._closed:
            raise StorageError(self._closed, code="storage.closed")

    def require_uninterrupted(self) -> None:
        """Raise ``StorageError`` (``storage.busy``) where this thread would wait for itself."""
        if self._leader == threading.get_ident():
            raise busy("the store was written")
        self._turn.require_free()
        self._reading.require_free()

    def _submit(self, queued: Queued) -> None:
        self._require_usable()
        with self._mutex:
            if len(self._waiting) >= MOST_WAITING:
                message = f"{MOST_WAITING} entries wait: find out why the store can't be written"
                raise StorageError(message, code="storage.full")
            self._waiting.append(queued)
        self.require_open(queued)

    def require_open(self, queued: Queued) -> None:
        """Raise ``StorageError`` where a call that interrupted this thread has closed the store."""
        if self._closed and not queued.is_settled:
            raise StorageError(self._closed, code="storage.closed")

    def _wait_for(self, queued: Queued) -> bool:
        """Wait until a job is settled (True), or this thread has to lead (False)."""
        with self._mutex:
            while not queued.is_settled and self._leader:
                self._changed.wait()
            return queued.is_settled

    def _lead(self, own: Queued | None) -> None:
        """Commit one batch, unless another thread leads by now."""
        failure: StorageError | None = None
        try:
            with self._mutex:
                if self._leader:
                    return
                self._leader = threading.get_ident()
            with self._turn.held():
                self._commit()
            self.newest_attempt = WriteAttempt()
        except Exception as error:
            failure = error if isinstance(error, StorageError) else _unwritable(error)
            if failure is not error:
                _LOGGER.exception("the log can't be written")
            self.newest_attempt = WriteAttempt(failure)
            if own is None:
                raise failure from error
        finally:
            self._settle(own, failure)

    def _settle(self, own: Queued | None, failure: StorageError | None) -> None:
        """Settle the batch, and let others lead. Where nobody waits for a job, it stays waiting."""
        with self._mutex:
            if self._leader != threading.get_ident():
                return
            again = []
            for queued in self._batch:
                # an interrupt may have come before the batch was taken from what waits
                if queued.is_settled or queued in self._waiting:
                    continue
                if failure is not None and queued.has_waiter:
                    queued.error, queued.is_settled = failure, True
                elif queued is not own:  # an interrupt is for this thread alone
                    again.append(queued)
            self._waiting[:0] = again
            self._batch = []  # last: a second interrupt loses nothing
            if failure is not None and own in self._waiting:  # it failed before it took a batch
                self._waiting.remove(own)
                own.error, own.is_settled = failure, True
            self._leader = 0
            self._changed.notify_all()

    def _commit(self) -> None:
        before = self._seen
        if self._uncertain is not None:
            self._resolve(self._uncertain)
        if self._anchor is not None:
            self._anchor.settle()
        try:
            self._write()
        except BaseException as error:
            if not (self._is_durable_after(error) and isinstance(error, Exception)):
                raise
        for queued in self._batch:
            queued.is_settled = True
        self._uncertain = None
        if self._anchor is not None and self._seen is not None and self._seen is not before:
            self._anchor.write(self._seen.head.size, self._seen.note)

    def _write(self) -> None:
        """Run the jobs that wait, and commit what they want.

        ``before_commit`` comes before the lock of all writers, since it may wait for another lock;
        where another process has signed with a key that replaced this one's, it comes again.
        """
        for is_due in (False, True):
            self.before_commit(self._now(self.seen), is_due)
            if self._engine.write(self._write_batch):
                return
        message = "the log's key in this process was replaced: open the guard again"
        raise StorageError(message, code="storage.unvouched")

    def _write_batch(self, rows: Writing) -> bool:
        """Write on top of the newest head, unless a key that replaced this one's has signed it."""
        newest = self._followed(self._seen, rows.query)
        self._accept(newest)
        if self._signer is not None and self._is_replaced(self._signer.public_key, newest.key):
            return False
        self._take_batch()
        view, at = self._view(newest, rows.query), self._now(newest.head)
        batch = Batch(newest.head, newest.peaks, at, view, rows)
        for queued in self._batch:
            self._run(queued, batch)
        if batch.records:
            written = self._written(batch, rows)
            # until its jobs are settled, nobody knows
            self._uncertain = _Attempt(batch.head.size, batch.leaves[0], self._batch, written)
            rows.commit()
            self._accept(written)
        elif batch.pages:
            rows.write_pages(batch.pages)
            rows.commit()
        return True

    def _is_durable_after(self, error: BaseException) -> bool:
        """Whether a commit is durable that has raised ``error``: the store tells."""
        attempt = self._uncertain
        try:
            return attempt is not None and self._resolve(attempt)
        except StorageError as unread:
            if isinstance(error, Exception):
                message = f"whether the entry is in the log is not known yet: {unread}"
                raise StorageError(message, code="storage.unknown") from unread
            return False  # an interrupt comes first; the next commit asks again

    def _take_batch(self) -> None:
        with self._mutex:
            ready = [one for one in self._waiting if one.job is not None]
            self._batch = ready[:MOST_AT_ONCE]
            later = [one for one in self._waiting if one.job is None]
            self._waiting = later + ready[MOST_AT_ONCE:]

    def _resolve(self, attempt: _Attempt) -> bool:
        """Return whether a commit is durable, and settle its jobs if so.

        Until that is known, nothing is written: what nobody waits for would be written twice.
        Raises ``StorageError`` where the store can't be read.
        """
        self._uncertain = attempt
        with self._reading.held():
            found = self._engine.read(
                lambda query: query(check.LEAVES, (LOG, attempt.first, attempt.first + 1))
            )
        is_durable = found == [(attempt.leaf,)]
        if is_durable:
            self._accept(attempt.newest)
            with self._mutex:
                for queued in attempt.batch:
                    queued.is_settled = True
                self._waiting = [one for one in self._waiting if not one.is_settled]
        self._uncertain = None
        return is_durable

    def _now(self, head: Head) -> str:
        """Return the time of a commit: the clock's, or the newest in the log where it is later.

        A clock that fails or stands far behind stops no commit: what decides by the time refuses by
        itself (``clock.failed``, ``clock.skew``), and the refusal goes into the log.
        """
        try:
            return max(timestamp(self._clock()), head.at)
        except Exception:  # noqa: BLE001  the clock is a port, and may fail in any way
            return head.at

    def _run(self, queued: Queued, batch: Batch) -> None:
        """Run a job, whose result or error counts once the batch is durable.

        A job is refused by what is before it, in the same batch as well.
        """
        wanted = Transaction(batch)
        queued.error = None
        try:
            assert queued.job is not None  # noqa: S101  a batch takes no other
            queued.result = queued.job(wanted)
            wanted.require_entry()
        except Exception as error:
            is_of_storage = isinstance(error, StorageError) and error.code != "storage.locked"
            if is_of_storage or isinstance(error, MemoryError):
                raise  # it is no job's own, and no job's work is lost for it
            queued.error = error
            if not queued.has_waiter:
                flusher.LOGGER.exception("an enqueued entry was refused")
        else:
            batch.take(wanted)

    def _written(self, batch: Batch, rows: Writing) -> _Seen:
        """Write what the batch wants, and the head over it, without committing."""
        if self._signer is None:
            message = (
                "this process has no key of the log, and adds no entry: open the state with "
                "its keys"
            )
            raise StorageError(message, code="storage.readonly")
        if any(
            trusted.key == self._signer.public_key and trusted.compromised_since is not None
            for trusted in self._keys
        ):
            message = "the log's key in this process was declared compromised: open the guard again"
            raise StorageError(message, code="storage.unvouched")
        first = batch.head.size
        map_root, changed = batch.map.seal()
        head = Head(self._log, batch.peaks.size, batch.peaks.root(), map_root, batch.newest)
        signer, peaks = self._signer, batch.peaks.encode()

        def signed() -> tuple[bytes, bytes]:
            try:
                return heads.sign(head, signer), peaks
            except Exception as error:  # a signer may be a service
                message = f"the log's key can't sign ({type(error).__name__}: {error})"
                raise StorageError(message) from error

        entries, beside = [], []
        for index, (record, leaf) in enumerate(
            zip(batch.records, batch.leaves, strict=True), first
        ):
            entries.append((LOG, index, *record.summary, leaf, record.body))
            beside += [(LOG, index, *one) for one in record.attachments]
        rows.write(_ADD_ENTRY, entries)
        rows.write(_ADD_ATTACHMENT, beside)
        rows.write(_ADD_TREE, [(LOG, *one) for one in tree.stored(batch.completed)])
        if changed:
            put = [(LOG, at, node) for at, node in changed.items() if node is not None]
            rows.write(_PUT_NODE, put)
            rows.write(_DROP_NODE, [(LOG, at) for at, node in changed.items() if node is None])
        rows.write(_ADD_ENDING, [(LOG, *one) for one in batch.ends])
        rows.write(_DROP_ENDING, [(LOG, *one) for one in batch.looked_at])
        rows.write_pages(batch.pages)
        return _Seen(head, rows.write_head(signed), batch.peaks, signer.public_key)

    # --- forks -----------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until nobody reads or writes, and close the database."""
        is_interrupted = self._turn.is_own or self._reading.is_own
        for lock in (self._turn, self._reading, self._mutex):
            lock.acquire()
        if self._engine.is_shared and not is_interrupted:
            self._engine.close()
            self._is_forkable = True

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._is_forkable = False
        for lock in (self._mutex, self._reading, self._turn):
            lock.release()

    def after_fork_in_child(self) -> None:
        """Leave what waits to the parent, and open the database anew."""
        if not self._is_forkable:  # in memory, or the thread that forks was interrupted amid SQLite
            self._closed = self._closed or _OF_PARENT
        self._is_forkable = False
        self._pid = os.getpid()
        self._begin_anew()

    def leave_to_parent(self) -> None:
        """In a forked process: refuse each later call."""
        self._closed = self._closed or _OF_PARENT
        flusher.unregister(self)


_STORES: Final = fork.AtFork(fork.Stage.STORES)


def _require_continuation(
    before: Head, peaks: CompactRange | None, after: Head, query: Query
) -> None:
    """Raise ``StorageError`` (``storage.rolled_back``) unless one head continues another.

    ``peaks`` are those of ``before``; an anchor has none.
    """
    if after.size <= before.size:
        message = f"the store has {after.size} entries, and {before.size} were seen, or other ones"
        raise _rolled_back(message)
    if before.size == 0:
        return
    if peaks is not None and after.size - before.size <= _FOLLOWED:
        grown = peaks.copy()
        leaves = query(check.LEAVES, (LOG, before.size, after.size))
        check.require_types(leaves, bytes)
        for (leaf,) in leaves:
            grown.append(leaf)
        if (grown.size, grown.root()) != (after.size, after.root):
            raise _rolled_back("the entries since the head that was seen lead to another one")
        return
    try:
        proof = tree.consistency_proof(before.size, after.size, check.hashes(query))
        merkle.verify_consistency(before.size, after.size, before.root, after.root, proof)
    except AgentguardError as error:
        raise _rolled_back(f"the store does not continue what was seen: {error}") from error


def _corrupt(problem: str) -> StorageError:
    message = f"{problem}: keep a copy, and run agentguard audit verify"
    return StorageError(message, code="storage.corrupt")


def _unvouched(key: str) -> StorageError:
    message = (
        f"the newest entries of the log are vouched for by {key} alone: nothing is added to them. "
        f"Find out who wrote them, put back the state from before, and run {ADOPT}"
    )
    return StorageError(message, code="storage.unvouched")


def _rolled_back(problem: str) -> StorageError:
    return StorageError(f"{problem}: {ROLLED_BACK}", code="storage.rolled_back")


def _unwritable(error: Exception) -> StorageError:
    return StorageError(f"the log can't be written ({type(error).__name__}: {error})")
