"""Attacks on the files of a log, and accidents that befall them.

Whoever can write the state edits, cuts, copies or replaces it with SQLite itself; ``examine``
says where, with the trust and the anchor that lie outside. What can't be opened is refused by a
typed error that says what to do, and is left as it was.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import textwrap
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard, StorageError
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.domain import administration, domain, keystore
from agentguard.domain.verify import examine
from agentguard.errors import KeyMaterialError
from agentguard.policy.function import FunctionEngine
from agentguard.storage import shard_file
from agentguard.storage.anchor import Anchor, anchor_path
from agentguard.storage.reader import StateReader
from agentguard.storage.sqlite import shard_path

PASSPHRASE = b"correct horse battery staple"


def use(place, ran, calls):
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        for number in range(calls):
            agent.call(tool, number)


def file_of(place, shard=0):
    return shard_path(place.config.state, shard)


def anchor_of(place, shard=0):
    trust = keystore.load_trust(place.config.state)
    return anchor_path(place.config.anchor, f"{trust.log}/{shard}")


def change(place, *statements):
    """What somebody with SQLite and the right to write does."""
    change_in(place, 0, *statements)


def change_in(place, shard, *statements):
    connection = sqlite3.connect(file_of(place, shard))
    for statement in statements:
        parts = statement if isinstance(statement, tuple) else (statement,)
        connection.execute(*parts)
    connection.commit()
    connection.close()


def problems(place):
    report = place.examine()
    assert report.ok == (not report.problems)
    return [problem.what for problem in report.problems]


def bodies(place):
    reader = StateReader(place.config.state)
    try:
        return list(reader.entries(0))
    finally:
        reader.close()


def snapshot(place, folder, name):
    copy = folder / name
    shutil.copytree(place.config.state, copy)
    return copy


def restore(place, copy):
    shutil.rmtree(place.config.state)
    shutil.copytree(copy, place.config.state)


def test_the_untouched_twin_verifies_and_is_anchored(used):
    report = used.examine()
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()


# --- edits in place ------------------------------------------------------------------------------

EDITS = {
    "a byte of an entry": (
        (
            "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'allow', 'aloow') AS BLOB)"
            " WHERE idx = (SELECT max(idx) FROM entries"
            " WHERE CAST(body AS TEXT) LIKE '%\"allow\"%')"
        ),
        26,
    ),
    "a time": (
        (
            'UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), \'"at":"20\', \'"at":"19\')'
            " AS BLOB) WHERE idx = 12"
        ),
        12,
    ),
    "a whole entry": ("UPDATE entries SET body = x'7b7d' WHERE idx = 9", 9),
    "an empty entry": ("UPDATE entries SET body = x'' WHERE idx = 9", 9),
    "one entry over another": (
        "UPDATE entries SET body = (SELECT body FROM entries WHERE idx = 10) WHERE idx = 12",
        12,
    ),
    "an entry in the middle is gone": ("DELETE FROM entries WHERE idx = 9", 9),
    "the first entry is gone": ("DELETE FROM entries WHERE idx = 0", 0),
    "the last entry is gone": (
        "DELETE FROM entries WHERE idx = (SELECT max(idx) FROM entries)",
        27,
    ),
    "all entries are gone": ("DELETE FROM entries", 0),
    "an entry is added": ("INSERT INTO entries SELECT max(idx) + 1, body FROM entries", 28),
    "a checkpoint is another's": (
        (
            "UPDATE checkpoints SET note = (SELECT note FROM checkpoints ORDER BY size LIMIT 1)"
            " WHERE size = (SELECT max(size) FROM checkpoints)"
        ),
        27,
    ),
    "a checkpoint is damaged": ("UPDATE checkpoints SET note = x'00'", 0),
    "the last checkpoint is gone": (
        "DELETE FROM checkpoints WHERE size = (SELECT max(size) FROM checkpoints)",
        27,
    ),
    "all checkpoints are gone": ("DELETE FROM checkpoints", 27),
    "arguments beside the log": (
        "UPDATE attachments SET data = x'7b7d' WHERE role = 'arguments' AND idx >= 10",
        10,
    ),
    "a salt beside the log": ("UPDATE attachments SET salt = zeroblob(32) WHERE idx = 11", 11),
    "a commitment beside the log": ("UPDATE attachments SET commitment = 'x' WHERE idx = 12", 12),
    "a result on another entry": (
        "UPDATE attachments SET idx = idx - 1 WHERE role = 'result' AND idx = 15",
        14,
    ),
    "a result is gone": ("DELETE FROM attachments WHERE role = 'result' AND idx = 15", 15),
    "all that is kept is gone": ("DELETE FROM attachments", 8),
    "a table is gone": ("DROP TABLE entries", None),
    "no checkpoints at all": ("DROP TABLE checkpoints", None),
    "a summary names another tool": ("UPDATE summaries SET tool = 'x' WHERE idx = 10", 10),
    "a summary has another time": ("UPDATE summaries SET at = '1999' WHERE idx = 12", 12),
    "a summary hides a call": ("UPDATE summaries SET kind = 'key' WHERE idx = 14", 14),
    "a summary is another's": (
        (
            "UPDATE summaries SET invocation_id ="
            " (SELECT invocation_id FROM summaries WHERE idx = 12) WHERE idx = 10"
        ),
        10,
    ),
    "a summary is gone": ("DELETE FROM summaries WHERE idx = 12", 12),
    "text that is no UTF-8": (
        "UPDATE attachments SET role = CAST(x'ff' AS TEXT) WHERE role = 'result'",
        None,
    ),
    "the tree to go on from": ("UPDATE shard SET range = zeroblob(length(range))", None),
    "the size to go on from": ("UPDATE shard SET size = size - 1", None),
    "the origin to go on from": ("UPDATE shard SET origin = 'x'", None),
    "nothing to go on from": ("DELETE FROM shard", None),
}
"""What somebody does to a log of 28 entries, and where; None for the shard as a whole."""


@pytest.mark.parametrize(("edit", "at"), EDITS.values(), ids=EDITS)
def test_every_edit_is_found_and_located(used, edit, at):
    """A commit has one checkpoint: an entry and the one that rode with it can't be told apart."""
    change(used, edit)
    found = used.examine().problems
    assert {problem.shard for problem in found} == {0}
    where = [problem.index for problem in found]
    if at is None:
        assert set(where) == {None}
    else:
        assert any(index in (at - 1, at) for index in where), where
        # of what is found before, nothing was whole: but a checkpoint that is said twice
        earlier = [index for index in where if index is not None and index < at - 1]
        assert len(earlier) <= edit.count("ORDER BY size"), where


def test_older_checkpoints_are_not_asked_for(used, ran):
    """The twin: the newest covers all that they have covered."""
    change(used, "DELETE FROM checkpoints WHERE size < (SELECT max(size) FROM checkpoints)")
    assert problems(used) == []
    use(used, ran, 1)
    assert problems(used) == []


def test_problems_without_end_are_counted(place, ran):
    use(place, ran, 60)
    change(place, "UPDATE summaries SET at = '1999'")
    report = place.examine()
    assert [problem.index for problem in report.problems] == [*range(100), None]
    assert report.problems[-1].what == f"and {report.entries - 100} more"


def test_a_shard_that_is_gone_is_found(used, ran):
    """A second shard is left, whose opening embeds the head of the first."""
    two_shards(used, ran)
    file_of(used, 0).unlink()
    found = used.examine()
    assert {problem.shard for problem in found.problems} == {0, 1}
    assert any("the shard is missing" in problem.what for problem in found.problems)
    assert any("embeds" in problem.what for problem in found.problems)
    assert not found.anchored
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "storage.rolled_back"


def test_a_shard_under_another_number_is_found(used):
    file_of(used, 0).rename(file_of(used, 7))
    report = used.examine()
    assert {problem.shard for problem in report.problems} == {0, 7}
    assert any("another log's" in problem.what for problem in report.problems)
    assert any("the shard is missing" in problem.what for problem in report.problems)


def test_a_copy_as_a_second_shard_is_found(used):
    shutil.copy(file_of(used, 0), file_of(used, 1))
    report = used.examine()
    assert report.problems
    assert {problem.shard for problem in report.problems} == {1}


def test_a_shard_that_nobody_has_written_to_yet_is_no_finding(used, ran):
    """Its writer died making it, or is about to write: what the others hold is whole."""
    make_empty(used, 1)
    report = used.examine()
    assert report.problems == ()
    assert report.anchored
    assert [shard.entries > 0 for shard in report.shards] == [True, False]
    two_shards(used, ran)  # it is taken up
    report = used.examine()
    assert report.problems == ()
    assert [shard.entries > 0 for shard in report.shards] == [True, True]


@pytest.mark.parametrize("known", ["registry", "anchor"])
def test_an_emptied_shard_that_is_known_is_found(used, ran, known):
    """The twin of the above."""
    two_shards(used, ran)
    report = used.examine()
    assert (report.ok, report.anchored) == (True, True)
    if known == "registry":
        anchor_of(used, 1).unlink()
    else:
        forget_in_registry(used, 1)
    file_of(used, 1).unlink()
    make_empty(used, 1)
    report = used.examine()
    assert {problem.shard for problem in report.problems} == {1}
    assert not report.anchored


def make_empty(place, shard):
    trust = keystore.load_trust(place.config.state)
    origin = f"{trust.log}/{shard}"
    file = shard_file.ShardFile.take(file_of(place, shard), origin, Anchor(None, origin, ()), trust)
    assert file is not None
    file.close()


def forget_in_registry(place, shard):
    """Set the registry back to an older one, which the issuer has signed, too."""
    home = place.take_up()
    path = place.config.state / "registry.json"
    listed = verify_registry(path.read_bytes(), home.trust)
    older = seal_registry(home.issuer, home.trust, listed.shards - {shard}, at=listed.at)
    path.write_bytes(older)


def test_a_spelling_of_a_number_is_no_shard(used, ran):
    """The twin of the above: what is named like no shard is none, for reader and writer alike."""
    for name in ("00", "+1", "1 ", "x", "\N{SUPERSCRIPT TWO}"):
        shutil.copy(file_of(used, 0), file_of(used, name))
    assert problems(used) == []
    use(used, ran, 1)
    report = used.examine()
    assert [shard.shard for shard in report.shards] == [0]


def two_shards(place, ran):
    with place.open() as first, place.open() as second:
        for guard in (first, second):
            guard.new_agent("reader").call(guard.tool(ran.append, name="note"), 0)


def test_two_entries_that_swap_their_places_are_found(used):
    change(
        used,
        "UPDATE entries SET idx = -1 WHERE idx = 9",
        "UPDATE entries SET idx = 9 WHERE idx = 11",
        "UPDATE entries SET idx = 11 WHERE idx = -1",
    )
    (problem, *_rest) = used.examine().problems
    assert problem.index is not None
    assert problem.index <= 9


# --- what is gone ---------------------------------------------------------------------------------


def erase(place, invocation_id):
    return administration.erase(
        place.config, PASSPHRASE, invocation_id, note="asked for", now=datetime.now(UTC)
    )


def ids_of(place, shard=0):
    """The calls of a shard, by their index."""
    with closing(sqlite3.connect(file_of(place, shard))) as connection:
        statement = "SELECT idx, invocation_id FROM summaries WHERE kind = 'authorization'"
        return dict(connection.execute(statement).fetchall())


def test_what_is_gone_without_an_erasure_on_record_is_found(used):
    change(used, "DELETE FROM attachments WHERE idx IN (10, 15)")
    found = used.examine()
    assert [(problem.index, problem.what) for problem in found.problems] == [
        (10, "what was kept beside it is gone (arguments, input), and no erasure is on record"),
        (15, "what was kept beside it is gone (result), and no erasure is on record"),
    ]
    assert found.anchored  # the log itself is whole


def test_the_twin_with_an_erasure_on_record_is_none(used):
    """Whether the rows are emptied, as it empties them, or gone."""
    wanted = ids_of(used)[10]
    erase(used, wanted)
    assert problems(used) == []
    change(used, "DELETE FROM attachments WHERE idx IN (10, 11)")
    assert problems(used) == []
    change(used, "DELETE FROM attachments WHERE idx = 12")
    (problem,) = used.examine().problems
    assert problem.index == 12


def test_emptied_rows_are_gone_as_well(used):
    """Who writes what an erasure leaves behind has put none on record."""
    change(used, "UPDATE attachments SET commitment = '', salt = x'', data = x'' WHERE idx = 10")
    (problem,) = used.examine().problems
    assert (problem.index, "is gone" in problem.what) == (10, True)


def test_of_much_that_is_gone_the_number_is_told(place, ran):
    use(place, ran, 30)
    change(place, "DELETE FROM attachments")
    found = place.examine().problems
    assert [problem.index for problem in found] == [*range(8, 28), None]
    assert "40 more entries: 60 have lost what was kept" in found[-1].what


def test_what_is_erased_while_it_is_verified_is_no_finding(used, ran):
    """The erasure comes into a shard that was walked already, of a call in one that was not."""
    two_shards(used, ran)
    (wanted,) = ids_of(used, 1).values()
    reader = StateReader(used.config.state)
    last = len(list(reader.entries(0)))
    recorded = []

    def progress(entries):
        if entries == last:
            recorded.append(erase(used, wanted).recorded)

    trust = keystore.load_trust(used.config.state)
    with closing(reader):
        report = examine(reader, trust, anchor=used.config.anchor, progress=progress)
    assert (recorded[0].shard, recorded[0].index >= last) == (0, True)
    assert report.problems == ()
    change_in(used, 0, "DELETE FROM attachments WHERE idx = 10")
    assert [problem.index for problem in used.examine().problems] == [10]


# --- what finds entries ---------------------------------------------------------------------------


def rebuild_index(place, condition):
    """Have the index hold other rows than its schema says, which still says so."""
    with closing(sqlite3.connect(file_of(place), isolation_level=None)) as connection:
        named = "FROM sqlite_master WHERE name = 'summaries_by_invocation'"
        (schema,) = connection.execute(f"SELECT sql {named}").fetchone()
        connection.execute("DROP INDEX summaries_by_invocation")
        connection.execute(
            f"CREATE INDEX summaries_by_invocation ON summaries (invocation_id) WHERE {condition}"
        )
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = ? WHERE name = 'summaries_by_invocation'", (schema,)
        )


@pytest.mark.parametrize("contents", [True, False])
def test_an_index_that_hides_entries_is_found(used, contents):
    """Every outcome is missing in it: by what is looked up, all calls are in doubt."""
    rebuild_index(used, "kind = 'authorization'")
    with closing(StateReader(used.config.state)) as reader:
        assert len(list(reader.unsettled(0))) == 10
        trust = keystore.load_trust(used.config.state)
        report = examine(reader, trust, contents=contents)
    assert any("summaries_by_invocation" in problem.what for problem in report.problems)
    assert report.damaged == (0,)


def test_an_index_that_was_rebuilt_as_it_was_is_none(used):
    """The twin."""
    rebuild_index(used, "invocation_id IS NOT NULL")
    assert problems(used) == []
    change(used, "REINDEX")
    assert problems(used) == []


def pages_of(place, table):
    """The file of shard 0 as bytes, the size of its pages, and the root of a table in it."""
    with closing(sqlite3.connect(file_of(place))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        named = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = connection.execute(named, (table,)).fetchone()
    data = bytearray(file_of(place).read_bytes())
    (size,) = struct.unpack(">H", data[16:18])
    return data, size, root


def test_a_row_that_only_a_walk_finds_is_a_finding(used):
    """A page of the table's tree says that less stands below it than does."""
    data, size, root = pages_of(used, "entries")
    start = (root - 1) * size
    assert data[start] == 5  # an inner page of a table
    (cell,) = struct.unpack(">H", data[start + 12 : start + 14])
    hidden = data[start + cell + 4]  # the last index below its first child
    data[start + cell + 4] = hidden - 1
    file_of(used).write_bytes(data)
    with closing(StateReader(used.config.state)) as reader:
        assert hidden in [index for index, _body in reader.entries(0)]
        assert reader.entry(0, hidden) is None
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
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("table", ["entries", "summaries", "checkpoints", "attachments"])
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
    with closing(StateReader(used.config.state)) as reader:
        trust = keystore.load_trust(used.config.state)
        report = examine(reader, trust, anchor=used.config.anchor, contents=contents)
    assert not report.ok
    assert report.damaged == (0,)
    assert len(report.problems) < 110


# --- what is no log -------------------------------------------------------------------------------


def loosen(place):
    """Replace the strict tables by such that take any type."""
    for table in ("entries", "checkpoints", "attachments", "shard"):
        change(
            place,
            f"CREATE TABLE loose AS SELECT * FROM {table}",  # noqa: S608  of the four above
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
    assert "tables, triggers or views that no log has" in problem


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = 5 WHERE idx = 9",
        "UPDATE entries SET body = NULL WHERE idx = 9",
        "UPDATE entries SET body = 'text' WHERE idx = 9",
        "UPDATE entries SET body = NULL",
        "UPDATE checkpoints SET note = 7",
        "UPDATE checkpoints SET note = 'x'",
        "UPDATE checkpoints SET note = NULL",
        "UPDATE attachments SET data = 5",
        "UPDATE attachments SET salt = NULL",
        "UPDATE attachments SET role = 5 WHERE role = 'input'",
        "UPDATE attachments SET commitment = x'00'",
        "UPDATE attachments SET idx = idx || 'x' WHERE role = 'input'",
        "UPDATE summaries SET kind = 5",
        "UPDATE summaries SET tool = 5 WHERE tool IS NOT NULL",
        "UPDATE summaries SET at = NULL",
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
        "UPDATE entries SET body = 5",
        "UPDATE entries SET body = NULL",
        "UPDATE checkpoints SET note = 5",
        "UPDATE checkpoints SET note = NULL",
        "UPDATE shard SET size = 'x'",
        "UPDATE shard SET size = NULL",
        "UPDATE shard SET range = 5",
        "UPDATE shard SET origin = NULL",
        "DELETE FROM shard",
    ],
)
def test_a_state_with_values_of_other_types_is_not_opened(used, statement):
    smuggle(used, statement)
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code in {"storage.corrupt", "storage.failed"}


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM attachments; END",
        "CREATE VIEW v AS SELECT * FROM entries",
        "CREATE TABLE another (x)",
        "CREATE INDEX i ON entries (body)",
        "ALTER TABLE entries ADD COLUMN more TEXT",
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
    assert "tables, triggers or views that no log has" in problem


def test_a_trigger_that_is_gone_again_does_no_harm(used, ran):
    change(used, "CREATE TRIGGER t AFTER INSERT ON entries BEGIN SELECT 1; END", "DROP TRIGGER t")
    use(used, ran, 1)
    assert problems(used) == []


# --- what a guard that opens such a state does ----------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        ("UPDATE shard SET range = ?", (os.urandom(32 * 3),)),
        ("UPDATE shard SET range = zeroblob(length(range))",),
        ("UPDATE shard SET size = size - 1",),
        ("UPDATE shard SET size = size + 1",),
        ("UPDATE shard SET size = -1",),
        ("UPDATE shard SET origin = 'acme.example/log/other/0'",),
        ("DELETE FROM entries WHERE idx = (SELECT max(idx) FROM entries)",),
        ("UPDATE entries SET body = x'00' WHERE idx = (SELECT max(idx) FROM entries)",),
        ("DELETE FROM checkpoints",),
    ],
    ids=lambda statement: statement[0],
)
@pytest.mark.parametrize("anchored", [True, False], ids=["anchored", "unanchored"])
def test_a_log_whose_end_was_changed_is_not_written_any_further(used, statement, anchored):
    if not anchored:
        anchor_of(used).unlink()
    change(used, statement)
    before = (file_of(used)).read_bytes()
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code in {"storage.corrupt", "storage.rolled_back"}
    assert (file_of(used)).read_bytes() == before


def test_a_refused_state_is_given_back(used, tmp_path, ran):
    """Refusing must not keep the lock: once it is repaired, the same process can open it."""
    copy = snapshot(used, tmp_path, "copy")
    change(used, "UPDATE shard SET range = zeroblob(length(range))")
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            used.open()
        assert caught.value.code == "storage.corrupt"
    restore(used, copy)
    use(used, ran, 1)
    assert problems(used) == []


# --- rollback -------------------------------------------------------------------------------------


def test_a_state_that_was_rolled_back_is_refused_and_found(used, tmp_path, ran):
    copy = snapshot(used, tmp_path, "old")
    use(used, ran, 3)
    newest = snapshot(used, tmp_path, "new")
    restore(used, copy)
    with pytest.raises(StorageError, match="agentguard adopt") as caught:
        used.open()
    assert caught.value.code == "storage.rolled_back"
    assert any("cut off" in what for what in problems(used))
    restore(used, newest)
    use(used, ran, 1)
    assert problems(used) == []


def test_a_forged_tail_of_the_same_length_is_found(used, tmp_path, ran):
    """A fork: another history with as many entries, signed by the log's own key."""
    base = snapshot(used, tmp_path, "base")
    before = anchor_of(used).read_bytes()
    use(used, ran, 2)
    real = anchor_of(used).read_bytes()
    restore(used, base)
    anchor_of(used).write_bytes(before)  # the forger sets the anchor back, too
    use(used, ran, 2)
    assert problems(used) == []
    anchor_of(used).write_bytes(real)  # but somebody has kept what it was
    assert any("differ" in what for what in problems(used))
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "storage.rolled_back"


def test_without_an_anchor_a_rollback_shows_as_unanchored(used, tmp_path, ran):
    copy = snapshot(used, tmp_path, "old")
    use(used, ran, 3)
    restore(used, copy)
    shutil.rmtree(used.config.anchor)
    report = used.examine()
    assert report.ok
    assert not report.anchored


@pytest.mark.parametrize("note", [b"x", b"\xff" * 200, b"a\n1\nb\n\n"], ids=len)
def test_a_damaged_anchor_is_an_error_and_a_finding(used, note):
    anchor = anchor_of(used)
    anchor.write_bytes(note)
    with pytest.raises(StorageError, match="find out who changed it") as caught:
        used.open()
    assert caught.value.code == "anchor.damaged"
    assert any("anchor" in what for what in problems(used))
    assert anchor.read_bytes() == note


def test_an_anchor_of_another_log_is_damage(used):
    anchor = anchor_of(used)
    lines = anchor.read_bytes().split(b"\n")
    anchor.write_bytes(b"\n".join([b"acme.example/log/other/0", *lines[1:]]))
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "anchor.damaged"


# --- accidents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_to_the_file_is_typed_or_found(used, seed):
    chance = random.Random(seed)  # noqa: S311  damage, no secret
    path = file_of(used)
    entries = bodies(used)
    data = bytearray(path.read_bytes())
    for _ in range(200):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)
    found = problems(used)
    try:
        unharmed = bodies(used) == entries
    except StorageError:
        unharmed = False
    assert found or unharmed  # the damage may lie where nothing is kept
    try:
        used.open().close()
    except StorageError as error:
        assert error.code.startswith(("storage.", "anchor."))  # noqa: PT017  either may happen


@pytest.mark.parametrize("keep", [0, 1, 15, 100, 4096, 20_000])
def test_a_truncated_file_is_typed(used, keep):
    path = file_of(used)
    os.truncate(path, keep)
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code in {"storage.corrupt", "storage.missing", "storage.failed"}
    with pytest.raises(StorageError):
        bodies(used)
    assert problems(used) != []


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, os.urandom(8192)], ids=len)
def test_a_file_that_is_no_log_is_refused_and_left_alone(used, content):
    path = file_of(used)
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "storage.corrupt"
    assert path.read_bytes() == content
    with pytest.raises(StorageError):
        bodies(used)
    assert problems(used) != []


def test_somebody_elses_database_is_refused_and_left_alone(used):
    path = file_of(used)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="not a log of agentguard"):
        used.open()
    assert any("not a log of agentguard" in what for what in problems(used))


def test_a_newer_version_is_refused_and_left_alone(used):
    change(used, "PRAGMA user_version = 2")
    for use_it in (used.open, lambda: bodies(used)):
        with pytest.raises(StorageError, match="upgrade") as caught:
            use_it()
        assert caught.value.code == "storage.version"
    (problem,) = problems(used)  # it does not pass for a log that verifies
    assert "upgrade" in problem
    change(used, "PRAGMA user_version = 1")
    assert problems(used) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("shards/0.sqlite", "storage.rolled_back"),
        ("shards", "storage.rolled_back"),
        ("registry.json", "storage.rolled_back"),
        ("trust.json", "storage.missing"),
        ("keys/issuer", "key.unreadable"),
        ("keys/log", "key.unreadable"),
        (".", "storage.missing"),
    ],
)
def test_a_missing_part_is_named(used, name, code):
    path = used.config.state / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((StorageError, KeyMaterialError)) as caught:
        used.open()
    assert caught.value.code == code
    assert not path.exists()  # nothing is made in its place


@pytest.mark.parametrize("name", ["shards/0.sqlite", "shards", "."])
def test_a_log_without_a_shard_is_no_log_to_read(used, name):
    path = used.config.state / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(StorageError) as caught:
        StateReader(used.config.state)
    assert caught.value.code == "storage.missing"


def test_a_missing_write_ahead_log_is_found_by_the_anchor(place, tmp_path, ran):
    """Killed before the log was folded in, the newest entries lie beside the file."""
    use(place, ran, 2)
    guard = place.open()
    agent = guard.new_agent("reader")
    agent.call(guard.tool(ran.append, name="note"), "in the write-ahead log")
    copy = tmp_path / "without"
    shutil.copytree(place.config.state, copy, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    guard.close()
    restore(place, copy)
    with pytest.raises(StorageError) as caught:
        place.open()
    assert caught.value.code == "storage.rolled_back"


# --- who may write --------------------------------------------------------------------------------


def test_a_second_writer_has_a_shard_of_its_own(place, ran):
    first = place.open()
    agent = first.new_agent("reader")
    tool = first.tool(ran.append, name="note")
    agent.call(tool, 1)
    with place.open() as second:
        second.new_agent("reader").call(second.tool(ran.append, name="note"), 2)
        agent.call(tool, 3)
    agent.call(tool, 4)
    first.close()
    with place.open() as third:  # what was given back is taken up again
        third.new_agent("reader").call(third.tool(ran.append, name="note"), 5)
    assert ran == [1, 2, 3, 4, 5]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert [shard.shard for shard in report.shards] == [0, 1]
    assert place.seen().statuses == ["ok"] * 5


def test_a_shard_has_one_writer_in_all_processes(place, programs):
    program = """
        import sys
        from pathlib import Path
        from agentguard.errors import StorageError
        from agentguard.identity.trust import TrustDocument, TrustedKey
        from agentguard.signing.keys import Ed25519Signer
        from agentguard.storage.anchor import Anchor
        from agentguard.storage.shard_file import ShardFile
        key = Ed25519Signer.from_seed(bytes(32)).public_key
        trust = TrustDocument("acme.example", "acme.example/log/a", (TrustedKey("log", key, 0),))
        try:
            print(ShardFile.take(Path(sys.argv[1]), sys.argv[2], Anchor(None, "x/0", [key]), trust))
        except StorageError as error:
            print(error.code)
    """
    guard = place.open()
    origin = guard._runtime._line.log.head.origin
    words = ("-c", textwrap.dedent(program), file_of(place), origin)
    result = programs.run(*words, cwd=place.config.base)
    assert result.stdout.strip() == "None", result.stderr
    guard.close()
    result = programs.run(*words, cwd=place.config.base)
    assert result.stdout.strip() == "storage.corrupt"  # another log key than the log's
    place.open().close()


def test_a_shard_of_another_origin_is_not_taken(used):
    """The lock is free, and the file whole: but it is another's."""
    trust = keystore.load_trust(used.config.state)
    keys = [trusted.key for trusted in trust.keys_for("log")]
    for origin, taken in ((f"{trust.log}/1", False), (f"{trust.log}/0", True)):
        anchor = Anchor(None, origin, keys)
        if taken:
            file = shard_file.ShardFile.take(file_of(used), origin, anchor, trust)
            assert file is not None
            file.close()
            continue
        with pytest.raises(StorageError, match="another shard's") as caught:
            shard_file.ShardFile.take(file_of(used), origin, anchor, trust)
        assert caught.value.code == "storage.corrupt"


def test_a_writer_past_the_lock_does_not_fork_the_log(place, ran):
    """Somebody deletes the lock file and opens a second guard: one of the two is stopped."""
    first = place.open()
    agent = first.new_agent("reader")
    tool = first.tool(ran.append, name="note")
    agent.call(tool, 1)
    first._runtime._line.log.flush()  # or it may write while the second opens, which is no subject
    file_of(place).with_suffix(".lock").unlink()
    second = place.open()
    second.new_agent("reader").call(second.tool(ran.append, name="note"), 2)
    for codes in ({"storage.unknown", "storage.locked"}, {"storage.locked"}):
        with pytest.raises(Denied) as caught:
            agent.call(tool, "overtaken")
        assert caught.value.code in codes
    assert "overtaken" not in ran
    second.close()
    with suppress(StorageError):  # what it still had to write may have no place any more
        first.close()
    assert problems(place) == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o701])
def test_a_state_that_others_can_enter_is_refused(place, mode):
    place.config.state.chmod(mode)
    with pytest.raises(KeyMaterialError, match="chmod") as caught:
        place.open()
    assert caught.value.code == "key.exposed"
    place.config.state.chmod(0o700)
    place.open().close()


def test_what_is_kept_is_readable_by_its_owner_alone(used):
    for path in used.config.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


# --- what stands beside no entry ------------------------------------------------------------------


STRAY_OUTCOME = """INSERT INTO summaries (idx, kind, at, invocation_id)
    SELECT 1000000, 'outcome', at, invocation_id FROM summaries
    WHERE kind = 'authorization' LIMIT 1"""


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        (STRAY_OUTCOME, "summaries"),
        ("INSERT INTO attachments VALUES (1000000, 'result', 'x', x'00', x'7b7d')", "attachments"),
        ("INSERT INTO attachments VALUES (-1, 'result', 'x', x'00', x'7b7d')", "attachments"),
    ],
)
def test_what_stands_beside_no_entry_is_found(used, ran, statement, table):
    """It would hide a call in doubt, be in the way of a later entry, or outlive an erasure."""
    assert problems(used) == []
    change(used, statement)
    assert any(table in problem.what for problem in used.examine().problems)


def test_what_stands_past_the_end_is_not_built_on(used):
    change(used, "INSERT INTO attachments VALUES (1000000, 'result', 'x', x'00', x'7b7d')")
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "storage.corrupt"
    change(used, "DELETE FROM attachments WHERE idx = 1000000")
    used.open().close()


def test_what_an_anchor_has_not_seen_does_not_replace_what_it_has(used, tmp_path, ran):
    """A state from before grows past its anchor where nobody looks, and is then opened with it."""
    old = snapshot(used, tmp_path, "old")
    use(used, ran, 2)
    newest = snapshot(used, tmp_path, "new")
    restore(used, old)
    elsewhere = dataclasses.replace(used.config, anchor=None)
    home = domain.take_up(elsewhere, PASSPHRASE)
    unanchored: Any = Guard(elsewhere, FunctionEngine(lambda _: Decision.allow()), home)
    with unanchored as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        for number in range(9):
            agent.call(tool, number)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            used.open()
        assert caught.value.code == "storage.rolled_back"
    assert not used.examine().ok
    restore(used, newest)
    use(used, ran, 1)
    assert problems(used) == []
