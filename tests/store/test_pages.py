"""Pages beside the log: written with entries or alone, and gone from the file once removed."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import pytest
from store_place import KEYS, LOG, add, record, verified

from agentguard.errors import StorageError
from agentguard.store.pages import MAX_PAGE
from agentguard.store.sqlite import FileEngine, erase
from agentguard.store.store import Store

WORD = b"a word that the log may not keep"


def put(store, name, data):
    store.run(lambda tx: tx.write_page(name, data))


def page(store, name):
    return store.look(lambda view: view.page(name))


def test_a_page_is_read_until_it_is_removed_and_changes_no_head(place):
    store = place.open()
    add(store, "first")
    before = store.head()
    for data in (b"one", b"two", b""):
        put(store, "runs/a", data)
        assert page(store, "runs/a") == data
    put(store, "runs/a", None)
    put(store, "runs/a", None)
    assert page(store, "runs/a") is None
    assert store.head() == before
    assert verified(store) == before
    add(store, "second")
    assert verified(store).size == 2


def test_a_folder_has_its_own_pages_alone(place):
    store = place.open()
    names = (
        "runs/a",
        "runs/b",
        "runs0",
        "run/a",
        "runs/",
        "answers/1/a",
        "answers/1/b",
        "answers/10/c",
    )
    for name in names:
        put(store, name, name.encode())

    def read(view):
        return [[*view.pages(one)] for one in ("runs", "answers", "answers/1", "answers/10", "x")]

    found = [["runs/a", "runs/b"], ["answers/1/a", "answers/1/b", "answers/10/c"]]
    found += [["answers/1/a", "answers/1/b"], ["answers/10/c"], []]
    assert store.look(read) == found
    assert store.run(read) == found


@pytest.mark.parametrize("fails", [True, False])
def test_a_page_is_written_with_its_entry_or_neither_is(place, fails):
    store = place.open()

    def job(tx):
        tx.write_page("journal/a", b"result")
        assert tx.page("journal/a") == b"result"
        assert [*tx.pages("journal")] == ["journal/a"]
        if fails:
            raise KeyError("no")
        return tx.append(record("first", tx.at))

    if fails:
        with pytest.raises(KeyError):
            store.run(job)
    else:
        store.run(job)
    assert page(store, "journal/a") == (None if fails else b"result")
    assert store.head().size == (0 if fails else 1)


def test_a_job_sees_what_an_earlier_one_of_its_batch_has_written(place):
    store = place.open()
    put(store, "runs/a", b"old")
    put(store, "runs/b", b"old")
    seen = []
    entered, free = threading.Event(), threading.Event()

    def first(_tx):
        entered.set()
        free.wait(60)

    def second(tx):
        tx.write_page("runs/a", b"new")
        tx.write_page("runs/b", None)

    def third(tx):
        seen.append((tx.page("runs/a"), tx.page("runs/b"), tx.pages("runs")))

    leader = threading.Thread(target=store.run, args=(first,))
    leader.start()
    entered.wait(60)
    store.enqueue(second)
    follower = threading.Thread(target=store.run, args=(third,))
    follower.start()
    while len(store._waiting) < 2:
        time.sleep(0.001)
    free.set()
    leader.join()
    follower.join()
    assert seen == [(b"new", None, {"runs/a": b"new"})]


def test_without_the_logs_key_pages_alone_are_written(on_disk):
    add(on_disk.open(), "first")
    keyless = on_disk.open(signer=None)
    put(keyless, "answers/1/a", b"yes")
    assert page(on_disk.open(), "answers/1/a") == b"yes"
    with pytest.raises(StorageError) as refused:
        add(keyless, "second")
    assert refused.value.code == "storage.readonly"
    reading = Store(FileEngine(on_disk.path, writes=False), LOG, lambda: KEYS)
    assert page(reading, "answers/1/a") == b"yes"
    with pytest.raises(StorageError) as refused:
        put(reading, "answers/1/a", b"no")
    assert refused.value.code == "storage.readonly"
    assert page(reading, "answers/1/a") == b"yes"


def test_a_page_that_is_too_long_fails_alone(place):
    store = place.open()
    with pytest.raises(ValueError, match="at the most"):
        put(store, "runs/a", bytes(MAX_PAGE + 1))
    put(store, "runs/a", bytes(MAX_PAGE))
    assert page(store, "runs/a") == bytes(MAX_PAGE)


def test_what_is_no_data_is_damage(on_disk):
    store = on_disk.open()
    put(store, "runs/a", b"1")
    put(store, "runs/b", b"2")
    with closing(sqlite3.connect(on_disk.path)) as raw:
        (sql,) = raw.execute("SELECT sql FROM sqlite_schema WHERE name = 'page'").fetchone()
        for schema in (sql.replace(" STRICT", ""), sql):
            raw.execute("PRAGMA writable_schema = ON")
            raw.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'page'", (schema,))
            raw.commit()
            raw.execute("PRAGMA writable_schema = RESET")
            if schema != sql:
                raw.execute("UPDATE page SET data = 'text' WHERE name = 'runs/a'")
                raw.commit()
    fresh = on_disk.open()
    with pytest.raises(StorageError) as refused:
        page(fresh, "runs/a")
    assert refused.value.code == "storage.corrupt"
    assert page(fresh, "runs/b") == b"2"


def holds(path, word=WORD):
    """Return which files of a store have a word."""
    beside = [path, path.with_name(path.name + "-wal")]
    return [one.name for one in beside if one.exists() and word in one.read_bytes()]


def test_a_request_that_is_removed_leaves_no_copy_in_the_files(on_disk):
    store = on_disk.open()
    for number in range(60):  # so that SQLite moves rows
        put(store, f"requests/{number:02}", WORD + b"%03d" % number + bytes(7 * number))
    for number in range(0, 60, 2):
        put(store, f"requests/{number:02}", None)
    assert holds(on_disk.path) != []
    for number in range(1, 60, 2):
        put(store, f"requests/{number:02}", None)
    assert holds(on_disk.path) == []
    assert verified(store)


def test_while_somebody_reads_the_next_commit_removes_the_copies(on_disk):
    store = on_disk.open()
    put(store, "requests/a", WORD)
    with closing(sqlite3.connect(on_disk.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM request").fetchall()
        put(store, "requests/a", None)  # nobody waits for the reader
        assert holds(on_disk.path) != []
        reader.execute("ROLLBACK")
    add(store, "next")
    assert holds(on_disk.path) == []


def test_an_erasure_removes_the_copies_of_pages_that_were_removed(on_disk):
    store = on_disk.open()
    for number in range(60):
        put(store, f"journal/{number:02}", WORD + b"%03d" % number + bytes(7 * number))
    for number in range(60):
        put(store, f"journal/{number:02}", None)
    put(store, "journal/kept", b"kept")
    erase(on_disk.path, [])
    assert holds(on_disk.path) == []
    assert page(store, "journal/kept") == b"kept"
