"""The group commit: who leads, what a batch holds, and how a log is flushed and closed.

How it behaves when storage fails stands in ``attacks/test_storage_faults.py``.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref

import pytest

from agentguard import StorageError
from agentguard.audit import checkpoint, merkle
from agentguard.audit.kinds.announcements import ConfigEntry
from agentguard.audit.merkle import CompactRange
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage.log import MAX_BATCH, ShardLog
from agentguard.storage.memory import MemoryBackend
from agentguard.storage.owned_lock import SQLITE_LOCK

ORIGIN = "acme.example/log/1/0"


def record(number, at="2026-11-25T12:00:00.000000Z"):
    return ConfigEntry.new(b'{"n":%d}' % number, at=at)


class Watched:
    """A real backend that counts, can be held at its gate, and lets a test in while it writes."""

    def __init__(self, inner, *, durable=False):
        self.inner = inner
        self.durable = durable
        self.batches = []
        self.closes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.within = []

    def read_head(self):
        return self.inner.read_head()

    def write(self, records, head, sign):
        self.entered.set()
        assert self.gate.wait(60), "the test never opened the gate"
        within, self.within = self.within, []
        for act in within:
            act()
        self.inner.write(records, head, sign)
        self.batches.append(len(records))

    def try_write(self):
        self.inner.try_write()

    def close(self):
        self.closes += 1
        self.inner.close()

    def abandon(self):
        self.inner.abandon()


@pytest.fixture
def backend(signer):
    return Watched(MemoryBackend(ORIGIN, signer))


@pytest.fixture
def log(backend, signer):
    return ShardLog(backend, signer)


def bodies(backend):
    return [body for _index, body in backend.inner.entries(0)]


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def test_an_append_returns_its_place_under_a_signed_checkpoint(log, backend, signer):
    receipts = [log.append(record(number)) for number in range(5)]
    assert [(receipt.shard, receipt.index) for receipt in receipts] == [(0, n) for n in range(5)]
    assert bodies(backend) == [record(number).body for number in range(5)]
    tree, point = CompactRange(), None
    for body, note in zip(bodies(backend), backend.inner.checkpoints(0), strict=True):
        tree.append(merkle.leaf_hash(body))
        point, _key = checkpoint.verify_any(note, [signer.public_key], origin=ORIGIN)
        assert (point.size, point.root) == (tree.size, tree.root())
    assert log.head == point


def test_what_was_enqueued_goes_before_the_append_that_takes_it_along(log, backend):
    log.enqueue(record(1))
    log.enqueue(record(2))
    assert bodies(backend) == []
    assert log.append(record(3)).index == 2
    assert bodies(backend) == [record(n).body for n in (1, 2, 3)]
    assert backend.batches == [3]


def test_those_who_come_while_somebody_writes_share_the_next_batch(log, backend):
    backend.gate.clear()
    receipts = {}

    def append(number):
        receipts[number] = log.append(record(number))

    first = threading.Thread(target=append, args=(0,))
    first.start()
    assert backend.entered.wait(60)
    others = [threading.Thread(target=append, args=(number,)) for number in range(1, 9)]
    for thread in others:
        thread.start()
    until(lambda: len(log._pending) == 8)
    backend.gate.set()
    for thread in [first, *others]:
        thread.join(60)
    assert backend.batches == [1, 8]
    assert sorted(receipt.index for receipt in receipts.values()) == list(range(9))
    for number, receipt in receipts.items():
        assert bodies(backend)[receipt.index] == record(number).body


def test_a_batch_has_a_limit(log, backend):
    for number in range(MAX_BATCH + 10):
        log.enqueue(record(number))
    assert log.append(record(-1)).index == MAX_BATCH + 10
    assert backend.batches == [MAX_BATCH, 11]


def test_time_in_the_log_does_not_go_back(log):
    log.append(record(1, at="2026-11-25T12:00:00.000000Z"))
    newest = log.last_at
    log.append(record(2, at="2026-11-25T11:00:00.000000Z"))
    assert log.last_at == newest
    log.append(record(3, at="2026-11-25T13:00:00.000000Z"))
    assert log.last_at > newest


def test_flush_writes_what_waits_and_nothing_otherwise(log, backend):
    log.flush()
    assert backend.batches == []
    log.enqueue(record(1))
    log.flush()
    log.flush()
    assert backend.batches == [1]


def test_flush_leaves_what_comes_meanwhile_to_others(log, backend):
    log.enqueue(record(1))
    backend.within = [lambda: log.enqueue(record(2))]
    log.flush()
    assert backend.batches == [1]
    log.flush()
    assert backend.batches == [1, 1]


def test_flush_does_not_end_before_an_earlier_record_is_durable(log, backend, in_time):
    log.enqueue(record(1))
    backend.gate.clear()
    leading = threading.Thread(target=log.append, args=[record(2)])
    leading.start()
    assert backend.entered.wait(60)
    flushing = threading.Thread(target=log.flush)
    flushing.start()
    flushing.join(0.2)
    assert flushing.is_alive()
    backend.gate.set()
    flushing.join(60)
    leading.join(60)
    assert bodies(backend) == [record(1).body, record(2).body]


def test_a_durable_log_flushes_by_itself(signer):
    backend = Watched(MemoryBackend(ORIGIN, signer), durable=True)
    log = ShardLog(backend, signer)
    for number in range(3):
        log.enqueue(record(number))
        until(lambda: len(bodies(backend)) == number + 1)  # noqa: B023  it is called at once
    log.close()


def test_a_flusher_outlives_a_failure(signer, monkeypatch):
    backend = Watched(MemoryBackend(ORIGIN, signer), durable=True)
    log = ShardLog(backend, signer)
    failures = [StorageError("away")]
    write = backend.write

    def fails_once(*batch):
        if failures:
            raise failures.pop()
        write(*batch)

    monkeypatch.setattr(backend, "write", fails_once)
    log.enqueue(record(1))
    until(lambda: not failures)
    until(lambda: bodies(backend) == [record(1).body])
    log.close()


def test_close_flushes_refuses_afterwards_and_happens_once(log, backend):
    log.enqueue(record(1))
    log.close()
    log.close()
    assert bodies(backend) == [record(1).body]
    assert backend.closes == 1
    assert log.closed
    for late in (log.append, log.enqueue):
        with pytest.raises(StorageError) as caught:
            late(record(2))
        assert caught.value.code == "storage.closed"
    assert bodies(backend) == [record(1).body]


def test_two_who_close_at_once_give_the_place_back_once(log, backend):
    log.enqueue(record(1))
    backend.gate.clear()
    closers = [threading.Thread(target=log.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    assert backend.entered.wait(60)
    backend.gate.set()
    for closer in closers:
        closer.join(60)
    assert backend.closes == 1
    assert bodies(backend) == [record(1).body]


def test_close_waits_for_an_append_that_has_begun(log, backend):
    backend.gate.clear()
    receipts = []
    thread = threading.Thread(target=lambda: receipts.append(log.append(record(1))))
    thread.start()
    assert backend.entered.wait(60)
    closer = threading.Thread(target=log.close)
    closer.start()
    time.sleep(0.02)
    assert backend.closes == 0
    backend.gate.set()
    closer.join(60)
    thread.join(60)
    assert [receipt.index for receipt in receipts] == [0]
    assert backend.closes == 1


def test_a_close_whose_flush_fails_says_so_and_gives_the_place_back(log, backend):
    log.enqueue(record(1))

    def broken(*_batch):
        raise StorageError("away")

    backend.write = broken
    with pytest.raises(StorageError, match="away"):
        log.close()
    assert backend.closes == 1
    assert log.closed


# --- a thread that comes to the log within its own commit -----------------------------------------


def refused(within):
    with pytest.raises(StorageError) as caught:
        within()
    return caught.value.code


@pytest.fixture
def in_time():
    """Ends a test that waits for itself."""

    def late(*_args):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 300)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_within_a_commit_nothing_waits_for_its_end(log, backend, in_time):
    codes = []
    backend.within = [
        lambda: codes.append(refused(lambda: log.append(record(2)))),
        lambda: codes.append(refused(log.flush)),
    ]
    assert log.append(record(1)).index == 0
    assert codes == ["storage.busy"] * 2
    assert bodies(backend) == [record(1).body]  # what was refused does not come after all
    assert log.append(record(3)).index == 1


def test_within_a_commit_a_record_can_be_handed_over(log, backend, in_time):
    backend.within = [lambda: log.enqueue(record(2))]
    log.append(record(1))
    log.flush()
    assert bodies(backend) == [record(1).body, record(2).body]


def test_within_a_commit_nobody_closes(log, backend, in_time):
    codes: list[str] = []
    backend.within = [lambda: codes.append(refused(log.close))]
    assert log.append(record(1)).index == 0
    assert codes == ["storage.busy"]
    assert (log.closed, backend.closes) == (False, 0)
    log.close()  # the twin
    assert backend.closes == 1


def test_another_thread_waits_as_ever(log, backend, in_time):
    """The twin: who leads is somebody else."""
    backend.gate.clear()
    receipts = []
    leading = threading.Thread(target=lambda: receipts.append(log.append(record(1))))
    leading.start()
    assert backend.entered.wait(60)
    threading.Timer(0.05, backend.gate.set).start()
    assert log.append(record(2)).index == 1
    leading.join(60)
    assert [receipt.index for receipt in receipts] == [0]


def test_inside_sqlite_nobody_waits_for_who_has_to_go_there(log, backend, in_time):
    """As when a signal handler interrupts a reader: whoever leads may wait for it."""
    backend.gate.clear()
    leading = threading.Thread(target=log.append, args=(record(1),))
    leading.start()
    assert backend.entered.wait(60)
    with SQLITE_LOCK:
        assert refused(lambda: log.append(record(2))) == "storage.busy"
        assert refused(log.flush) == "storage.busy"
        assert refused(log.close) == "storage.busy"
    backend.gate.set()
    leading.join(60)
    assert bodies(backend) == [record(1).body]


def test_a_log_in_memory_that_nobody_holds_goes_away(signer):
    log = ShardLog(MemoryBackend(ORIGIN, signer), signer)
    log.enqueue(record(1))
    gone = weakref.ref(log)
    del log
    gc.collect()
    assert gone() is None


def test_a_signer_that_fails_fails_the_append_and_no_more(monkeypatch):
    good = Ed25519Signer.from_seed(bytes(range(32)))

    class Away:
        key_id, public_key = good.key_id, good.public_key
        broken = True

        def sign(self, data):
            if self.broken:
                raise ConnectionError("kms")
            return good.sign(data)

    signer = Away()
    backend = MemoryBackend(ORIGIN, signer)
    write = backend.write

    def signs(records, head, sign):
        sign()  # as SQLite's does
        write(records, head, sign)

    monkeypatch.setattr(backend, "write", signs)
    log = ShardLog(backend, signer)
    with pytest.raises(StorageError, match="ConnectionError"):
        log.append(record(1))
    signer.broken = False
    assert log.append(record(2)).index == 0
