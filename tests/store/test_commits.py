"""The group commit: what a batch holds, and how a store is flushed and closed."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from store_place import SIGNER, Place, add, record, verified

from agentguard.errors import StorageError
from agentguard.store.store import MOST_AT_ONCE, Store


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


class Gate:
    """Counts the commits of a store, and holds them up while it is closed."""

    def __init__(self, store):
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()
        self.sizes = []
        self.failures = []
        self.store = store
        store.before_commit = self.pass_one

    def pass_one(self, _at, _has_new_keys):
        self.sizes.append(self.store.seen.size)
        self.entered.set()
        assert self.opened.wait(60), "the test never opened the gate"
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def gate(store):
    return Gate(store)


def enqueue(store, name):
    store.enqueue(lambda tx: tx.append(record(name, tx.at)))


def started(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def joined(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_those_who_come_while_somebody_writes_share_the_next_commit(store, gate):
    gate.opened.clear()
    indices = []
    first = started(lambda: add(store, "first"))
    assert gate.entered.wait(60)
    others = started(*(lambda n=n: indices.append(add(store, f"n{n}")) for n in range(8)))
    until(lambda: len(store._waiting) == 9)  # the leader takes its batch after the gate
    gate.opened.set()
    joined(first + others)
    assert sorted(indices) == [*range(1, 9)]
    assert gate.sizes == [0]


def test_a_commit_has_a_limit(place, monkeypatch):
    store = place.open()
    monkeypatch.setattr(store, "_wake_flusher", lambda: None)
    gate = Gate(store)
    for number in range(MOST_AT_ONCE + 10):
        enqueue(store, str(number))
    assert add(store, "last") == MOST_AT_ONCE + 10
    assert gate.sizes == [0, MOST_AT_ONCE]


def test_a_flush_does_not_end_before_a_commit_under_way(store, gate):
    gate.opened.clear()
    leading = started(lambda: add(store, "a"))
    assert gate.entered.wait(60)
    enqueue(store, "b")
    flushing = started(store.flush)
    flushing[0].join(0.1)
    assert flushing[0].is_alive()
    gate.opened.set()
    joined(leading + flushing)
    assert store.head().size == 2


def test_a_flush_leaves_to_others_what_comes_meanwhile(place, monkeypatch):
    store = place.open()
    monkeypatch.setattr(store, "_wake_flusher", lambda: None)
    later = ["c", "b"]

    def job(tx):
        joined(started(lambda: enqueue(store, later.pop())))
        return tx.append(record("a", tx.at))

    store.enqueue(job)
    store.flush()
    assert store.head().size == 1
    store.flush()
    store.flush()
    assert store.head().size == 2


def test_a_flusher_outlives_a_failure(on_disk):
    store = on_disk.open()
    gate = Gate(store)
    gate.failures.append(StorageError("away"))
    enqueue(store, "a")
    until(lambda: store.head().size == 1)
    assert len(gate.sizes) == 2


def test_a_close_whose_flush_fails_says_so_and_closes(store, gate):
    gate.failures += [StorageError("away")] * 9
    enqueue(store, "a")
    with pytest.raises(StorageError, match="away"):
        store.close()
    assert store.closed


def test_who_closes_at_once_with_others_closes_once(store, gate):
    gate.opened.clear()
    enqueue(store, "a")
    closing = started(*[store.close] * 4)
    assert gate.entered.wait(60)
    gate.opened.set()
    joined(closing)
    assert store.closed
    assert store.seen.size == 1


def test_a_close_waits_for_a_commit_that_has_begun(store, gate):
    gate.opened.clear()
    indices: list[int] = []
    adding = started(lambda: indices.append(add(store, "a")))
    assert gate.entered.wait(60)
    closing = started(store.close)
    closing[0].join(0.05)
    assert not store.closed
    gate.opened.set()
    joined(adding + closing)
    assert indices == [0]
    assert store.closed


def test_a_store_in_memory_that_nobody_holds_goes_away(tmp_path):
    store = Place(tmp_path, "memory").open()
    enqueue(store, "a")
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None


class Away:
    """A signer in a service that can be away."""

    key_id, public_key = SIGNER.key_id, SIGNER.public_key
    is_away = True

    def sign(self, data):
        if self.is_away:
            raise ConnectionError("kms")
        return SIGNER.sign(data)


def test_a_signer_that_fails_fails_its_commit_and_no_more(on_disk):
    signer = Away()
    store = on_disk.open(signer=signer)
    with pytest.raises(StorageError, match="ConnectionError"):
        add(store, "a")
    signer.is_away = False
    assert add(store, "b") == 0
    assert verified(store).size == 1
