"""A reader of a log sees what is stored, in its order, and says what is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from store_place import LOG, record

from agentguard.audit import checkpoint, head, merkle
from agentguard.audit.summary import Search
from agentguard.errors import StorageError
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine, erase

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
    assert [*reader.search(Search(tool="\ud800"))] == []


def test_proofs_hold_under_the_signed_head_and_the_checkpoint_of_the_same_tree(reader, store):
    found = head.parse(reader.head())
    point = checkpoint.parse(reader.checkpoint()).checkpoint
    assert (point.origin, point.size, point.root) == (LOG, found.size, found.root)
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
