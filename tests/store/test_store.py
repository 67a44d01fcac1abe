"""What a store keeps: entries in one order, values and absences, under one signed head."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from store_place import KIND, LOG, OTHER, START, add, get, items, record, verified

from agentguard.audit.map import MAX_VALUE, key
from agentguard.errors import StorageError


def code_of(call, *given):
    with pytest.raises(StorageError) as caught:
        call(*given)
    return caught.value.code


def test_an_entry_and_what_follows_from_it_are_one_commit(place):
    store = place.open()
    assert (store.head().size, store.head().log) == (0, LOG)
    assert [add(store, name) for name in "abc"] == [0, 1, 2]
    assert get(store, key(KIND, "a"), key(KIND, "z"), key(OTHER, "a")) == [b"", None, None]
    assert add(store, "a", None) == 3
    assert get(store, key(KIND, "a")) == [None]
    assert items(store, KIND) == {key(KIND, name): b"" for name in "bc"}
    assert items(store, OTHER) == {}
    assert verified(store).size == 4


def test_a_job_that_raises_leaves_nothing(place):
    store = place.open()
    add(store, "a")
    before = store.head()

    def broken(tx):
        tx.append(record("b", tx.at))
        tx.put(key(KIND, "b"), b"")
        raise LookupError("the check failed")

    def too_long(tx):
        tx.append(record("c", tx.at))
        tx.put(key(KIND, "c"), b"x" * (MAX_VALUE + 1))

    def without_entry(tx):
        tx.put(key(KIND, "d"), b"")

    with pytest.raises(LookupError):
        store.run(broken)
    for job in (too_long, without_entry):
        with pytest.raises(ValueError, match=r"bytes|append one"):
            store.run(job)
    assert store.head() == before
    assert get(store, *(key(KIND, name) for name in "abcd")) == [b"", None, None, None]
    assert add(store, "b") == 1  # the twin
    verified(store)


def test_a_job_sees_its_own_changes_and_those_before_it_in_its_batch(place):
    store = place.open()

    def count(tx):
        one = key(KIND, "counter")
        number = int(tx.get(one) or b"0") + 1
        tx.put(one, str(number).encode())
        assert tx.get(one) == str(number).encode()
        tx.append(record(str(number), tx.at))
        return number

    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(store.run(count) for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 161))
    assert get(store, key(KIND, "counter")) == [b"160"]
    assert verified(store).size == 160


def test_a_job_that_fails_in_a_batch_fails_alone(place):
    store = place.open()
    results, started = {}, threading.Event()

    def slow(tx):
        started.set()
        for _ in range(200):
            if len(store._waiting) >= 3:  # the others wait for the next batch by now
                break
            threading.Event().wait(0.01)
        return tx.append(record("slow", tx.at))

    def run(name):
        def job(tx):
            tx.append(record(name, tx.at))
            if name == "bad":
                raise LookupError(name)
            return name

        try:
            results[name] = store.run(job)
        except LookupError:
            results[name] = "failed"

    threads = [threading.Thread(target=store.run, args=(slow,))]
    threads[0].start()
    started.wait()
    threads += [threading.Thread(target=run, args=(name,)) for name in ("one", "bad", "two")]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"one": "one", "bad": "failed", "two": "two"}
    assert verified(store).size == 3


def test_an_enqueued_job_is_done_with_the_next_commit_or_a_flush(place):
    store = place.open()
    store.enqueue(lambda tx: tx.append(record("later", tx.at)))
    assert add(store, "a") == 1
    store.enqueue(lambda tx: tx.append(record("alone", tx.at)))
    store.flush()
    assert store.head().size == 3


def test_an_enqueued_job_is_done_soon_in_a_file(on_disk):
    """One in memory is done with the next job: nobody loses it before the process ends."""
    store = on_disk.open()
    store.enqueue(lambda tx: tx.append(record("soon", tx.at)))
    waited = threading.Event()
    for _ in range(200):
        if store.head().size == 1:
            break
        waited.wait(0.01)
    assert verified(store).size == 1


def test_the_time_of_the_log_never_goes_back_whatever_the_clock_says(place):
    store = place.open()
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    place.now = lambda: moment
    add(store, "a")
    for name, late in (("b", moment - timedelta(days=1)), ("c", None), ("d", 1 / 2)):
        place.now = lambda clock=late: clock
        add(store, name)
        assert store.head().at == "2027-01-01T00:00:00.000000Z"
    place.now = lambda: moment + timedelta(seconds=1)
    add(store, "e")
    assert store.head().at == "2027-01-01T00:00:01.000000Z" > START


def test_what_has_ended_is_told_once_and_removed_by_an_entry(place):
    store = place.open()

    def note(tx):
        for name, ends in (("a", 10), ("b", 20), ("c", 30)):
            tx.put(key(KIND, name), str(ends).encode(), ends=ends)
        tx.append(record("noted", tx.at))

    def sweep(now, most=10):
        def job(tx):
            ended = [one for one in tx.ended(now, most) if int(tx.get(one) or b"0") <= now]
            for one in ended:
                tx.put(one, None)
            tx.append(record(f"swept {now} {most}", tx.at))
            return ended

        return store.run(job)

    store.run(note)
    assert sweep(9) == []
    assert sweep(20, most=1) == [key(KIND, "a")]
    assert sweep(20) == [key(KIND, "b")]
    assert sweep(20) == []
    assert items(store, KIND) == {key(KIND, "c"): b"30"}
    verified(store)


def test_a_store_without_a_signer_reads_alone(on_disk):
    add(on_disk.open(), "a")
    reader = on_disk.open(signer=None)
    assert get(reader, key(KIND, "a")) == [b""]
    assert code_of(add, reader, "b") == "storage.readonly"
    assert verified(reader).size == 1


def test_a_closed_store_refuses(place):
    store = place.open()
    store.enqueue(lambda tx: tx.append(record("last", tx.at)))
    store.close()
    assert code_of(add, store, "a") == "storage.closed"
    assert code_of(store.head) == "storage.closed"
    if place.kind == "file":
        assert place.open().head().size == 1


def test_other_processes_write_while_one_is_asked_for_its_key(on_disk):
    """It may wait for a lock that another one holds until it has written."""
    first, second = on_disk.open(), on_disk.open()
    first.before_commit = lambda _at, _has_new_keys: add(second, "b")
    assert add(first, "a") == 1


def test_an_error_that_nobody_expects_is_a_denial_and_in_the_process_log(on_disk, caplog):
    store = on_disk.open()
    before, store.before_commit = store.before_commit, lambda *_given: 1 / 0
    with pytest.raises(StorageError, match="ZeroDivisionError"):
        add(store, "a")
    assert "the log can't be written" in caplog.text
    store.before_commit = before
    assert add(store, "a") == 0


def test_a_commit_that_comes_as_a_reading_begins_is_read(place, monkeypatch):
    """The nodes of the map are those of the newest head, and no others."""
    store = place.open()
    for number in range(20):
        add(store, str(number))
    read = store._engine.read

    def late(work):
        monkeypatch.undo()
        other = threading.Thread(target=add, args=(store, "late"))
        other.start()
        other.join()
        return read(work)

    monkeypatch.setattr(store._engine, "read", late)
    assert len(items(store, KIND)) == 21
