"""Reading a state's log: nothing is taken over, nothing is believed, each failure is typed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from agentguard import StorageError
from agentguard.audit.entry import Attachment, Record, StoredEntry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search, Summary
from agentguard.call.invocation import commitment
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.storage import sqlite
from agentguard.storage.lease import Lessor
from agentguard.storage.log import ShardLog
from agentguard.storage.memory import MemoryBackend
from agentguard.storage.reader import StateReader

AT = "2026-11-25T12:00:00.000000Z"
SALT = bytes(32)


def beside(role, data):
    return Attachment(role, commitment(SALT, data), SALT, data)


def body_of(n):
    return b'{"at":"%s","engine":{"n":%d},"files":{},"kind":"policy","policy_sha256":null}' % (
        AT.encode(),
        n,
    )


def record(n, *attachments):
    return Record(body_of(n), Summary("policy", AT, f"{n:032x}"), attachments)


@pytest.fixture
def lessor(tmp_path, signer):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    keys = tuple(TrustedKey(use, signer.public_key, 0) for use in ("issuer", "log"))
    trust = TrustDocument("acme.example", "acme.example/log/1", keys)
    return Lessor(state, None, trust, signer, signer)


@pytest.fixture
def log(lessor):
    opened = lessor.lease(datetime(2020, 1, 1, tzinfo=UTC))
    opened.append(record(1, beside("arguments", b"a"), beside("input", b"i")))
    opened.append(record(2))
    opened.append(record(3, beside("result", b"r")))
    yield opened
    opened.close()


@pytest.fixture
def reader(log, lessor):
    with closing(StateReader(lessor.state)) as opened:
        yield opened


def path_of(lessor, number=0):
    return sqlite.shard_path(lessor.state, number)


def change(lessor, *statements):
    with closing(sqlite3.connect(path_of(lessor))) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_it_reads_what_was_written(reader, lessor):
    protocol: LogReader = reader
    assert protocol.shards() == [0]
    assert [index for index, _body in reader.entries(0)] == [0, 1, 2, 3]
    assert parse_entry(next(reader.entries(0))[1]).kind == "shard"
    stored = list(reader.stored(0))
    assert [one.index for one in stored] == [0, 1, 2, 3]
    assert stored[1] == StoredEntry(
        1,
        body_of(1),
        Summary("policy", AT, f"{1:032x}"),
        [beside("arguments", b"a"), beside("input", b"i")],
    )
    assert [len(one.attachments) for one in stored] == [0, 2, 0, 1]
    assert reader.entry(0, 3) == stored[3]
    assert reader.entry(0, 3).attachments == [beside("result", b"r")]
    assert list(reader.search(0, Search(kind="policy"))) == [1, 2, 3]
    assert list(reader.search(0, Search(kind="policy"), after=1)) == [2, 3]
    assert [note.split(b"\n")[1] for note in reader.checkpoints(0)] == [b"1", b"2", b"3", b"4"]
    assert reader.checkpoint(0).split(b"\n")[1] == b"4"
    assert reader.checkpoint(0, 2).split(b"\n")[1] == b"2"
    assert reader.registry() == (lessor.state / "registry.json").read_bytes()


def test_what_is_not_there_is_none_or_empty(reader):
    for index in (-1, 4, 2**53, 2**63 - 1):
        assert reader.entry(0, index) is None
    assert reader.checkpoint(0, 99) is None
    assert list(reader.search(0, Search(kind="nobody"))) == []
    assert list(reader.search(0, Search(), after=2**53)) == []


@pytest.mark.parametrize("text", ["\ud800", "x\udcff"])
@pytest.mark.parametrize("name", Search._fields)
def test_what_is_no_text_is_found_nowhere(reader, name, text):
    """It may come from the command line, where bytes that are no UTF-8 become surrogates."""
    assert list(reader.search(0, Search(**{name: text}))) == []


def test_a_missing_shard_and_a_missing_log_are_typed(reader, tmp_path):
    for read in (reader.entries, reader.stored, reader.checkpoints):
        with pytest.raises(StorageError) as caught:
            list(read(7))
        assert caught.value.code == "storage.missing"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StorageError, match=r"no log at .*: restore the state") as caught:
            StateReader(folder)
        assert caught.value.code == "storage.missing"


def test_new_entries_and_new_shards_are_seen(reader, log, lessor):
    log.append(record(4))
    assert len(list(reader.entries(0))) == 5
    second = lessor.lease(datetime(2020, 1, 1, tzinfo=UTC))
    assert reader.shards() == [0, 1]
    assert len(list(reader.entries(1))) == 1
    second.close()


def test_a_walk_sees_one_moment_of_the_log(reader, log):
    """Its rows are those of when it began, while the writer goes on."""
    walk = reader.stored(0)
    assert next(walk).index == 0
    log.append(record(4))
    assert [one.index for one in walk] == [1, 2, 3]


def test_it_writes_nothing_into_the_log(log, lessor):
    log.close()
    before = path_of(lessor).read_bytes()
    with closing(StateReader(lessor.state)) as reader:
        list(reader.stored(0))
    assert path_of(lessor).read_bytes() == before
    beside = path_of(lessor).with_name("0.sqlite-wal")  # SQLite's own, which reading brings along
    assert not beside.exists() or beside.read_bytes() == b""


def test_it_keeps_no_writer_out(log, lessor):
    log.close()
    with closing(StateReader(lessor.state)) as reader:
        walk = reader.stored(0)
        next(walk)
        again = lessor.lease(datetime(2020, 1, 1, tzinfo=UTC))
        assert again.shard == 0
        again.close()
        assert len(list(walk)) == 3


def test_read_only_storage_can_be_read(log, lessor, tmp_path):
    log.close()
    copy = tmp_path / "copy"
    shutil.copytree(lessor.state, copy)
    (copy / "shards").chmod(0o500)
    (copy / "shards" / "0.sqlite").chmod(0o400)
    try:
        with closing(StateReader(copy)) as reader:
            assert len(list(reader.stored(0))) == 4
    finally:
        (copy / "shards").chmod(0o700)


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("INSERT INTO odd_entries VALUES (9, 'text')", "entries"),
        ("INSERT INTO odd_entries VALUES (9, 1.5)", "stored"),
        ("INSERT INTO odd_entries VALUES (9, NULL)", "stored"),
    ],
)
def test_rows_of_other_types_are_refused(reader, lessor, statement, read):
    """In a table without STRICT, which has the place of the log's: its schema is another."""
    change(
        lessor,
        "CREATE TABLE odd_entries (idx INTEGER PRIMARY KEY, body)",
        "INSERT INTO odd_entries SELECT * FROM entries",
        statement,
        "DROP TABLE entries",
        "ALTER TABLE odd_entries RENAME TO entries",
    )
    with pytest.raises(StorageError) as caught:
        list(getattr(reader, read)(0))
    assert caught.value.code == "storage.corrupt"
    with closing(StateReader(lessor.state)) as fresh, pytest.raises(StorageError) as caught:
        list(fresh.entries(0))
    assert caught.value.code == "storage.corrupt"


CHANGE = "UPDATE attachments SET {} WHERE role = 'result'"


@pytest.mark.parametrize(
    ("column", "value"),
    [("salt", "zeroblob(0)"), ("data", "zeroblob(0)"), ("role", "''"), ("commitment", "'x'")],
)
def test_attachments_are_shown_as_they_are(reader, lessor, column, value):
    """Whether they are what was committed to is the verifier's question, not the reader's."""
    change(lessor, CHANGE.format(f"{column} = {value}"))
    (kept,) = reader.entry(0, 3).attachments
    assert getattr(kept, column) in (b"", "", "x")


def test_orphans_and_gaps(reader, lessor):
    """What has no entry is not seen; an entry without a summary has none."""
    change(
        lessor,
        "DELETE FROM summaries WHERE idx = 2",
        "DELETE FROM entries WHERE idx = 1",
        "INSERT INTO attachments VALUES (77, 'result', 'x', x'', x'')",
    )
    stored = list(reader.stored(0))
    assert [(one.index, one.summary is None, len(one.attachments)) for one in stored] == [
        (0, False, 0),
        (2, True, 0),
        (3, False, 1),
    ]
    assert reader.entry(0, 1) is None
    assert reader.entry(0, 77) is None


@pytest.mark.parametrize("data", [b"", b"not a database" * 100, b"SQLite format 3\0" + bytes(2000)])
def test_another_file_in_its_place_is_refused(lessor, log, data):
    log.close()
    path_of(lessor).write_bytes(data)
    with closing(StateReader(lessor.state)) as reader, pytest.raises(StorageError) as caught:
        list(reader.entries(0))
    assert caught.value.code == "storage.corrupt"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "DROP INDEX summaries_by_invocation",
        "PRAGMA application_id = 1",
    ],
)
def test_another_schema_is_refused(lessor, log, statement):
    log.close()
    change(lessor, statement)
    with closing(StateReader(lessor.state)) as reader, pytest.raises(StorageError) as caught:
        list(reader.entries(0))
    assert caught.value.code == "storage.corrupt"


def test_a_later_format_says_so(lessor, log):
    log.close()
    change(lessor, "PRAGMA user_version = 2")
    with closing(StateReader(lessor.state)) as reader, pytest.raises(StorageError) as caught:
        list(reader.entries(0))
    assert caught.value.code == "storage.version"


def test_names_that_are_no_number_are_no_shards(lessor, log):
    for name in (
        "01.sqlite",
        "-1.sqlite",
        "x.sqlite",
        "1.sqlite.bak",
        "\u0661.sqlite",
        "1 .sqlite",
    ):
        (lessor.state / "shards" / name).write_bytes(b"")
    with closing(StateReader(lessor.state)) as reader:
        assert reader.shards() == [0]


def test_it_can_be_closed_twice_and_then_opens_anew(reader):
    reader.close()
    reader.close()
    assert len(list(reader.entries(0))) == 4


def test_a_fork_reads_on_its_own(reader):
    """Its parent's connections are left alone."""
    assert len(list(reader.entries(0))) == 4
    child = os.fork()
    if child == 0:
        os._exit(0 if len(list(reader.entries(0))) == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(reader.entries(0))) == 4


def call_of(n, decision):
    """A record of which only the columns are those of a call."""
    columns = {"decision": decision, "trace_id": f"{n:032x}"}
    return Record(body_of(n), Summary("call", AT, f"{n:032x}", **columns))


def end_of(n):
    return Record(body_of(n), Summary("outcome", AT, f"{n:032x}", status="ok"))


def test_a_log_in_memory_reads_as_one_on_disk(log, reader, signer):
    for made in (
        call_of(0xA1, "allow"),
        call_of(0xA2, "deny"),
        call_of(0xB1, "allow"),
        end_of(0xA1),
        call_of(0xB1, "deny"),
    ):
        log.append(made)
    memory = MemoryBackend(log.head.origin, signer)
    copy = ShardLog(memory, signer)
    for stored in reader.stored(0):
        assert stored.summary is not None
        copy.append(Record(stored.body, stored.summary, tuple(stored.attachments)))
    readers: list[LogReader] = [reader, memory]
    prefix = f"{0xA:031x}"
    asked: list[Callable[[LogReader], Iterator[object]]] = [
        lambda one: one.entries(0),
        lambda one: one.entries(0, after=2),
        lambda one: one.entries(0, after=99),
        lambda one: one.entries(0, newest_first=True),
        lambda one: one.entries(0, after=2, newest_first=True),
        lambda one: one.search(0, Search(), after=-1),
        lambda one: one.search(0, Search("policy"), after=1, newest_first=True),
        lambda one: one.named(0, prefix),
        lambda one: one.named(0, "f"),
        lambda one: one.traces(0, ""),
        lambda one: one.traces(0, prefix),
        lambda one: one.traces(0, "f"),
        lambda one: one.unsettled(0),
        lambda one: one.unsettled(0, newest_first=True),
        lambda one: iter([one.end(0)]),
        lambda one: one.damage(0),
        lambda one: one.shared_ids(0),
    ]
    for ask in asked:
        on_disk, in_memory = ([*ask(one)] for one in readers)
        assert in_memory == on_disk
    assert [*memory.named(0, prefix)] == [4, 5]
    assert [*memory.traces(0, prefix)] == [f"{n:032x}" for n in (0xA1, 0xA2)]
    assert [*memory.unsettled(0)] == [6]
    assert [index for index, _body in memory.entries(0, after=5, newest_first=True)] == [8, 7, 6]
    assert [*memory.shared_ids(0)] == [(8, 6)]
    assert (memory.end(0).origin, memory.end(0).size) == (log.head.origin, 9)
