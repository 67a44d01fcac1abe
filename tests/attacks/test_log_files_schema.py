"""Indexes that hide entries of a log, and tables and columns that a log does not have.

The attacker can write the state and uses SQLite itself. A state with such a schema is a finding of
``examine``, and no guard opens the state.
"""

from __future__ import annotations

import re
import signal
import sqlite3
import struct
from contextlib import closing

import pytest
from edited_logs import bodies, change, file_of, problems, use

from agentguard import StorageError
from agentguard.domain import keystore
from agentguard.domain.verify import examine
from agentguard.errors import VerificationError
from agentguard.store import reader as reader_module
from agentguard.store.reader import StoredLog

# --- what finds entries ---------------------------------------------------------------------------


def rebuild_index(place, condition):
    """Have the index hold other rows than its schema says, which still says so."""
    with closing(sqlite3.connect(file_of(place), isolation_level=None)) as connection:
        named = "FROM sqlite_master WHERE name = 'entry_by_invocation'"
        (schema,) = connection.execute(f"SELECT sql {named}").fetchone()
        connection.execute("DROP INDEX entry_by_invocation")
        connection.execute(
            f"CREATE INDEX entry_by_invocation ON entry (log, invocation_id, idx) WHERE {condition}"
        )
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = ? WHERE name = 'entry_by_invocation'", (schema,)
        )


@pytest.mark.parametrize("contents", [True, False])
def test_an_index_that_hides_entries_is_found(used, contents):
    """Every outcome is missing in it: by what is looked up, all calls are in doubt."""
    rebuild_index(used, "kind = 'call'")
    with closing(StoredLog.of(used.config.state)) as reader:
        assert len(list(reader.unsettled())) == 10
        trust = keystore.load_trust(used.config.state)
        report = examine(reader, trust, contents=contents)
    assert any("entry_by_invocation" in problem.what for problem in report.problems)
    assert report.damaged


def test_an_index_that_was_rebuilt_as_it_was_is_none(used):
    """The twin."""
    rebuild_index(used, "invocation_id IS NOT NULL")
    assert problems(used) == []
    change(used, "REINDEX")
    assert problems(used) == []


def test_a_search_by_the_id_of_a_call_reads_no_other_call(used):
    """In the order of the log, too, for which SQLite could take the primary key."""
    statement = reader_module._SEARCH.format("TRUE AND kind = ? AND invocation_id = ?", "")
    with closing(sqlite3.connect(file_of(used))) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {statement}", (0, -1, 2**63 - 1, "outcome", "0" * 32, 1)
        ).fetchall()
    assert ["entry_by_invocation (log=? AND invocation_id=?" in row[3] for row in plan] == [True]


def pages_of(place, table):
    """The log's file as bytes, the size of its pages, and the root of a table in it."""
    with closing(sqlite3.connect(file_of(place))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        named = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = connection.execute(named, (table,)).fetchone()
    data = bytearray(file_of(place).read_bytes())
    (size,) = struct.unpack(">H", data[16:18])
    return data, size, root


def test_a_row_that_only_a_walk_finds_is_a_finding(used):
    """A page of the table's tree says that less stands below it than does."""
    data, size, root = pages_of(used, "entry")
    start = (root - 1) * size
    assert data[start] == 5  # an inner page of a table
    (cell,) = struct.unpack(">H", data[start + 12 : start + 14])
    hidden = data[start + cell + 4]  # the last row below its first child
    data[start + cell + 4] = hidden - 1
    file_of(used).write_bytes(data)
    with closing(StoredLog.of(used.config.state)) as reader:
        assert hidden - 1 in [index for index, _body in reader.entries()]
        with pytest.raises(StorageError, match="malformed"):
            reader.entry(hidden - 1)
    assert any("out of order" in what for what in problems(used))


def inner_page(child, size):
    """A page of a table's tree below which one and the same child stands 501 times."""
    page = bytearray(size)
    cells = [size - 5 * (number + 1) for number in range(500)]
    for number, place in enumerate(cells):
        page[place : place + 5] = struct.pack(">IB", child, number % 100)
        page[12 + 2 * number : 14 + 2 * number] = struct.pack(">H", place)
    page[:12] = struct.pack(">BHHHBI", 5, 0, 500, cells[-1], 0, child)
    return bytes(page)


@pytest.fixture
def in_time():
    """Ends a test that does not end by itself."""

    def late(*_args):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 600)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("table", ["entry", "attachment", "head"])
@pytest.mark.parametrize("contents", [True, False])
def test_a_small_file_with_rows_without_end_is_found_in_time(used, in_time, table, contents):
    """Each of six pages stands 501 times below the next: 10^16 rows in some 100 KiB."""
    data, size, root = pages_of(used, table)
    page = bytes(data[(root - 1) * size : root * size])
    for _level in range(6):
        data += page
        page = inner_page(len(data) // size, size)
    data[(root - 1) * size : root * size] = page
    data[28:32] = struct.pack(">I", len(data) // size)
    file_of(used).write_bytes(data)
    with closing(StoredLog.of(used.config.state)) as reader:
        trust = keystore.load_trust(used.config.state)
        report = examine(reader, trust, anchor=used.config.anchor, contents=contents)
    assert not report.ok
    assert report.damaged
    assert len(report.problems) < 110


# --- what is no log -------------------------------------------------------------------------------


def loosen(place):
    """Replace the strict tables by such that take any type."""
    for table in ("entry", "head", "attachment"):
        change(
            place,
            f"CREATE TABLE loose AS SELECT * FROM {table}",  # noqa: S608  of the three above
            f"DROP TABLE {table}",
            f"ALTER TABLE loose RENAME TO {table}",
        )


def smuggle(place, statement):
    """Write what the strict tables would refuse, and leave their schema as it was."""
    file = file_of(place)
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT sql, rowid FROM sqlite_master WHERE type = 'table'")
        strict = found.fetchall()
    loose = [(re.sub(r"NOT NULL|CHECK \([^)]*\)|STRICT,?", "", sql), row) for sql, row in strict]
    for schema, then in ((loose, statement), (strict, "SELECT 1")):
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.executemany("UPDATE sqlite_master SET sql = ? WHERE rowid = ?", schema)
            (version,) = connection.execute("PRAGMA schema_version").fetchone()
            connection.execute(f"PRAGMA schema_version={version + 1}")
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute(then)


def test_tables_that_lost_their_strictness_are_a_finding_themselves(used):
    loosen(used)
    (problem,) = problems(used)
    assert "tables, triggers or views that agentguard has not made" in problem


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = 5 WHERE idx = 9",
        "UPDATE entry SET body = NULL WHERE idx = 9",
        "UPDATE entry SET body = 'text' WHERE idx = 9",
        "UPDATE entry SET body = NULL",
        "UPDATE entry SET leaf = 5 WHERE idx = 9",
        "UPDATE entry SET leaf = NULL",
        "UPDATE entry SET leaf = 'text'",
        "UPDATE entry SET kind = 5",
        "UPDATE entry SET tool = 5 WHERE tool IS NOT NULL",
        "UPDATE entry SET at = NULL",
        "UPDATE head SET note = 7",
        "UPDATE head SET note = 'x'",
        "UPDATE head SET note = NULL",
        "UPDATE tree SET hash = 7",
        "UPDATE tree SET hash = NULL",
        "UPDATE attachment SET data = 5",
        "UPDATE attachment SET salt = NULL",
        "UPDATE attachment SET role = 5 WHERE role = 'input'",
        "UPDATE attachment SET commitment = x'00'",
        "UPDATE attachment SET idx = idx || 'x' WHERE role = 'input'",
    ],
)
def test_values_of_other_types_are_findings_and_no_crash(used, statement):
    """In tables that say they are strict: the types are those of the rows, not of the schema."""
    smuggle(used, statement)
    assert problems(used) != []


def test_the_twin_a_schema_that_was_loosened_and_restored_does_no_harm(used, ran):
    smuggle(used, "SELECT 1")
    assert problems(used) == []
    use(used, ran, 1)
    assert problems(used) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET note = 5",
        "UPDATE head SET note = NULL",
        "UPDATE head SET peaks = 5",
        "UPDATE head SET peaks = NULL",
        "UPDATE head SET log = 1",
        "DELETE FROM head",
    ],
)
def test_a_state_with_values_of_other_types_is_not_opened(used, statement):
    smuggle(used, statement)
    with pytest.raises((StorageError, VerificationError)) as caught:
        used.open()
    assert caught.value.code in {"storage.corrupt", "storage.failed", "note.malformed"}


@pytest.mark.parametrize("value", ["5", "NULL"])
def test_an_entry_of_another_type_is_found(used, ran, value):
    smuggle(used, f"UPDATE entry SET body = {value} WHERE idx = 3")  # noqa: S608  the test's own
    use(used, ran, 1)  # a guard reads no old entry
    assert problems(used)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER t AFTER INSERT ON entry BEGIN DELETE FROM attachment; END",
        "CREATE VIEW v AS SELECT * FROM entry",
        "CREATE TABLE another (x)",
        "CREATE INDEX i ON entry (body)",
        "ALTER TABLE entry ADD COLUMN more TEXT",
    ],
)
def test_a_schema_with_more_in_it_is_refused(used, ran, statement):
    """A trigger would make the log swallow what it has acknowledged."""
    change(used, statement)
    for use_it in (used.open, lambda: bodies(used)):
        with pytest.raises(StorageError) as caught:
            use_it()
        assert caught.value.code == "storage.corrupt"
    (problem,) = problems(used)
    assert "tables, triggers or views that agentguard has not made" in problem


def test_a_trigger_that_is_gone_again_does_no_harm(used, ran):
    change(used, "CREATE TRIGGER t AFTER INSERT ON entry BEGIN SELECT 1; END", "DROP TRIGGER t")
    use(used, ran, 1)
    assert problems(used) == []
