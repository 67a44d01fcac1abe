"""A commit that failed: the store finds out whether it is durable, and writes nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from store_place import KEYS, KIND, LOG, SIGNER, Place, add, get, record, verified

from agentguard.audit.map import key
from agentguard.errors import StorageError
from agentguard.store import sqlite
from agentguard.store.engine import Query, T
from agentguard.store.store import Store


class Failing(sqlite.FileEngine):
    """Fails its next commit, before or after it is durable, and the readings that follow."""

    commit: str = ""
    unreadable: int = 0

    def write(self, work: Callable[[Any], T]) -> T:
        if not self.commit:
            return super().write(work)
        when, self.commit = self.commit, ""

        def fail(begun: sqlite.Connection) -> T:
            durable = begun.commit

            def commit() -> None:
                if when == "after":
                    durable()
                raise OSError("the disk was pulled out")

            begun.commit = commit  # type: ignore[method-assign]
            try:
                return work(begun)
            finally:
                del begun.commit

        return super().write(fail)

    def read(self, work: Callable[[Query], T]) -> T:
        if self.unreadable:
            self.unreadable -= 1
            raise StorageError("the disk is out")
        return super().read(work)


@pytest.fixture
def engine(tmp_path):
    return Failing(Place(tmp_path).path)


@pytest.fixture
def store(engine):
    opened = Store(engine, LOG, lambda: KEYS, SIGNER)
    yield opened
    opened.close()


def test_a_commit_that_is_durable_after_all_is_acknowledged(engine, store):
    add(store, "a")
    engine.commit = "after"
    assert add(store, "b") == 1
    assert add(store, "c") == 2
    assert verified(store).size == 3


def test_a_commit_that_is_not_durable_is_an_error_and_leaves_nothing(engine, store):
    add(store, "a")
    engine.commit = "before"
    with pytest.raises(StorageError):
        add(store, "b")
    assert get(store, key(KIND, "b")) == [None]
    assert add(store, "b") == 1


@pytest.mark.parametrize(("when", "size"), [("before", 1), ("after", 2)])
def test_nobody_knows_until_the_store_can_be_read(engine, store, when, size):
    add(store, "a")
    engine.commit, engine.unreadable = when, 2
    codes = []
    for name in ("b", "c"):
        with pytest.raises(StorageError) as caught:
            add(store, name)
        codes.append(caught.value.code)
    assert codes == ["storage.unknown", "storage.failed"]
    assert add(store, "d") == size
    assert verified(store).size == size + 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_nobody_waits_for_is_written_once(engine, store, when):
    add(store, "a")
    store.enqueue(lambda tx: tx.append(record("enqueued", tx.at)))
    engine.commit, engine.unreadable = when, 1
    with pytest.raises(StorageError) as caught:
        add(store, "b")
    assert caught.value.code == "storage.unknown"
    store.flush()
    names = engine.read(lambda query: query("SELECT invocation_id FROM entry ORDER BY idx", ()))
    assert names.count(("enqueued",)) == 1


def test_who_is_refused_by_a_commit_that_fails_is_not_refused_for_it(engine, store):
    """The first job is not durable, and so nothing stands against the second one."""
    taken = key(KIND, "taken")

    def take(tx):
        if tx.get(taken) is not None:
            raise LookupError("taken")
        tx.put(taken, b"")
        return tx.append(record("taken", tx.at))

    first = store.enqueue(take)
    second = store.enqueue(take)
    engine.commit = "before"
    with pytest.raises(StorageError):
        store.flush()
    assert [one.is_settled for one in (first, second)] == [False, False]
    store.flush()
    assert (first.error, type(second.error)) == (None, LookupError)
    assert verified(store).size == 1


def test_an_error_of_the_storage_in_a_job_loses_no_job(store):
    failures = [StorageError("the disk is out"), StorageError("damaged", code="storage.corrupt")]

    def job(tx):
        if failures:
            raise failures.pop()
        return tx.append(record("late", tx.at))

    store.enqueue(job)
    for _ in range(2):
        with pytest.raises(StorageError):
            add(store, "a")
    assert add(store, "a") == 1
    assert verified(store).size == 2


def test_what_a_commit_that_failed_has_refused_is_asked_again(engine, store):
    refusals = [LookupError("not now")]

    def job(tx):
        if refusals:
            raise refusals.pop()
        return tx.append(record("then", tx.at))

    store.enqueue(lambda tx: tx.append(record("first", tx.at)))
    queued = store.enqueue(job)
    engine.commit = "before"
    with pytest.raises(StorageError):
        store.flush()
    store.flush()
    assert (queued.error, queued.result) == (None, 1)
