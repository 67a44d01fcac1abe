"""A reader of a log sees what is stored, in its order, and says what is damaged."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest
from store_place import record

from agentguard.audit import head, merkle
from agentguard.audit.entry import Record
from agentguard.audit.summary import Search, Summary
from agentguard.errors import StorageError
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine, erase, path_in

MANY = 40  # more than one query brings


@pytest.fixture
def store(place):
    opened = place.open()
    for index in range(MANY):
        tool = "odd" if index % 2 else None
        opened.run(lambda tx, n=index, t=tool: tx.append(record(f"e{n}", tx.at, tool=t)))
    return opened


@pytest.fixture
def reader(place, store):
    engine = FileEngine(place.path, writes=False) if place.kind == "file" else store._engine
    with closing(StoredLog(engine)) as opened:
        yield opened


def test_entries_come_in_both_orders_with_what_is_beside_them(reader):
    bodies = [f"entry e{n}".encode() for n in range(MANY)]
    assert [*reader.entries()] == [*enumerate(bodies)]
    assert [*reader.entries(after=MANY - 3)] == [*enumerate(bodies)][-2:]
    assert [*reader.entries(after=1, newest_first=True)] == [*enumerate(bodies)][:1:-1]
    stored = [*reader.stored()]
    assert [one.body for one in stored] == bodies
    assert {tuple(one.attachments) for one in stored} == {(("input", "c", b"s", b"data"),)}
    assert reader.entry(7) == stored[7]
    assert reader.entry(MANY) is None


def test_a_search_finds_by_columns(reader):
    odd = [*range(1, MANY, 2)]
    assert [*reader.search(Search(tool="odd"))] == odd
    assert [*reader.search(Search(tool="odd"), after=30, newest_first=True)] == odd[:14:-1]


@pytest.mark.parametrize("text", ["\ud800", "x\udcff"])
@pytest.mark.parametrize("name", Search._fields)
def test_what_is_no_text_is_found_nowhere(reader, name, text):
    """It may come from the command line, where bytes that are no UTF-8 become surrogates."""
    assert [*reader.search(Search(**{name: text}))] == []


def call_of(tx, identifier, decision):
    """An entry of which only the columns are those of a call."""
    trace_id = f"{identifier:032x}"
    columns = Summary("call", tx.at, trace_id, decision=decision, trace_id=trace_id)
    return tx.append(Record(b"{}", columns))


def test_calls_are_found_by_their_ids_traces_and_outcomes(place):
    store = place.open()

    def job(tx):
        for identifier, decision in ((0xA1, "allow"), (0xA2, "deny"), (0xB1, "allow")):
            call_of(tx, identifier, decision)
        tx.append(Record(b"{}", Summary("outcome", tx.at, f"{0xA1:032x}", status="ok")))
        call_of(tx, 0xB1, "deny")

    store.run(job)
    engine = FileEngine(place.path, writes=False) if place.kind == "file" else store._engine
    with closing(StoredLog(engine)) as reader:
        prefix = f"{0xA:031x}"
        assert [*reader.named(prefix)] == [0, 1]
        assert [*reader.named("f")] == []
        assert [*reader.traces(prefix)] == [f"{n:032x}" for n in (0xA1, 0xA2)]
        assert [*reader.traces("")] == [f"{n:032x}" for n in (0xA1, 0xA2, 0xB1)]
        assert [*reader.unsettled()] == [2]
        assert [*reader.shared_ids()] == [(4, 2)]


def test_it_writes_nothing_and_keeps_no_writer_out(on_disk):
    store = on_disk.open()
    store.run(lambda tx: tx.append(record("a", tx.at)))
    store.close()
    before = on_disk.path.read_bytes()
    with closing(StoredLog(FileEngine(on_disk.path, writes=False))) as reader:
        walk = reader.stored()
        next(walk)
        assert on_disk.path.read_bytes() == before
        again = on_disk.open()
        assert again.run(lambda tx: tx.append(record("b", tx.at))) == 1
        assert [one.index for one in walk] in ([], [1])
        assert reader.size() == 2


def test_read_only_storage_can_be_read(on_disk):
    store = on_disk.open()
    store.run(lambda tx: tx.append(record("a", tx.at)))
    store.close()
    on_disk.path.chmod(0o400)
    on_disk.path.parent.chmod(0o500)
    try:
        with closing(StoredLog(FileEngine(on_disk.path, writes=False))) as reader:
            assert len([*reader.stored()]) == 1
    finally:
        on_disk.path.parent.chmod(0o700)


def test_it_can_be_closed_twice_and_then_opens_anew(reader):
    reader.close()
    reader.close()
    assert reader.size() == MANY


def test_a_fork_reads_on_its_own(reader):
    assert reader.size() == MANY
    child = os.fork()
    if child == 0:
        os._exit(0 if len([*reader.entries()]) == MANY else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len([*reader.entries()]) == MANY


def test_proofs_hold_under_the_signed_head(reader, store):
    found = head.parse(reader.head())
    assert reader.size() == MANY == store.head().size
    for index, body in reader.entries():
        proof = reader.inclusion_proof(index, MANY)
        merkle.verify_inclusion(index, MANY, merkle.leaf_hash(body), proof, found.root)
    tree = merkle.CompactRange()
    for _index, body in reader.entries(after=-1):
        tree.append(merkle.leaf_hash(body))
        if tree.size < MANY:
            proof = reader.consistency_proof(tree.size, MANY)
            merkle.verify_consistency(tree.size, MANY, tree.root(), found.root, proof)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE entry SET body = x'00' WHERE idx = 5", "entry 5"),
        ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 5", "entry 5"),
        ("DELETE FROM entry WHERE idx = 5", "entry 5"),
        ("DELETE FROM entry WHERE idx = 39", "entry 39"),
        ("UPDATE tree SET hash = zeroblob(32) WHERE idx = 1", "level 4"),
        ("INSERT INTO tree VALUES (0, 4, 9, x'00')", "no signed head"),
        ("INSERT INTO map VALUES (0, '0', x'00')", "no signed head"),
        ("INSERT INTO attachment VALUES (0, 99, 'input', 'c', x'', x'')", "entry 99"),
        ("UPDATE head SET note = x'00'", "the head can't be read"),
    ],
)
def test_it_says_what_is_damaged(on_disk, statement, problem):
    store = on_disk.open()
    for index in range(MANY):
        store.run(lambda tx, n=index: tx.append(record(f"e{n}", tx.at)))
    with closing(StoredLog(FileEngine(on_disk.path, writes=False))) as reader:
        assert [*reader.damage()] == []  # the twin
        with closing(sqlite3.connect(on_disk.path)) as editor:
            editor.execute(statement)
            editor.commit()
        assert problem in "\n".join(reader.damage())


def test_an_erased_attachment_is_in_the_file_no_more(on_disk):
    store = on_disk.open()
    store.run(lambda tx: tx.append(record("a", tx.at)))
    store.close()
    assert b"data" in on_disk.path.read_bytes()
    assert erase(on_disk.path, [0]) == 1
    with closing(StoredLog(FileEngine(on_disk.path, writes=False))) as reader:
        (found,) = reader.stored()
        assert [*found.attachments] == []
        assert [*reader.damage()] == []
    assert b"data" not in on_disk.path.read_bytes().replace(b"data BLOB", b"")


def test_a_state_without_a_log_is_an_error(tmp_path):
    with pytest.raises(StorageError) as caught:
        StoredLog.of(tmp_path)
    assert caught.value.code == "storage.missing"


@pytest.mark.parametrize("data", [b"", b"not a database" * 100, b"SQLite format 3\0" + bytes(2000)])
def test_another_file_in_its_place_is_an_error_of_the_first_read(tmp_path, data):
    path = path_in(tmp_path)
    path.write_bytes(data)
    with closing(StoredLog.of(tmp_path)) as reader, pytest.raises(StorageError) as caught:
        reader.size()
    assert caught.value.code == "storage.corrupt"


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("CREATE VIEW v AS SELECT 1", "storage.corrupt"),
        ("PRAGMA application_id = 1", "storage.corrupt"),
        ("PRAGMA user_version = 2", "storage.version"),
    ],
)
def test_another_schema_or_version_is_refused(on_disk, statement, code):
    with closing(sqlite3.connect(on_disk.path)) as editor:
        editor.execute(statement)
        editor.commit()
    with closing(StoredLog(FileEngine(on_disk.path, writes=False))) as reader:
        with pytest.raises(StorageError) as caught:
            reader.size()
        assert caught.value.code == code
