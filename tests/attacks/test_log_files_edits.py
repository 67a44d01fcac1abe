"""Edits of a log's files: entries, shards and registry rows that were changed, moved or removed.

The attacker can write the state and uses SQLite itself. ``examine`` names the place of each edit,
with the trust document and the anchor, which lie outside. Indexes and schemas are in
test_log_files_schema.py, rollbacks and damage in test_log_files_rollback.py.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, nullcontext
from datetime import UTC, datetime

import pytest
from edited_logs import PASSPHRASE, anchor_of, change, change_in, file_of, problems, use

from agentguard import StorageError
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.domain import administration, keystore
from agentguard.domain.verify import examine
from agentguard.errors import VerificationError
from agentguard.storage import shard_file, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.reader import StateReader


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
    "a summary makes a credential of a call": (
        "UPDATE summaries SET kind = 'identity' WHERE idx = 14",
        14,
    ),
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


@pytest.mark.parametrize("gone", [None, 0, 4, 7, 26])
def test_of_a_log_that_lacks_an_entry_no_call_is_proved(used, gone):
    """A call before the gap as little as one behind it: their proofs need all entries."""
    trust = keystore.load_trust(used.config.state)
    if gone is not None:
        change(used, ("DELETE FROM entries WHERE idx = ?", [gone]))
    with closing(StateReader(used.config.state)) as reader:
        parsed = [parse_entry(body) for _index, body in reader.entries(0)]
        calls = [one for one in parsed if isinstance(one, CallEntry)]
        for call in (calls[0], calls[-1]):
            refused = pytest.raises(VerificationError, match="audit verify")
            with refused if gone is not None else nullcontext():
                prove_call(reader, trust, str(call.invocation_id))


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
        statement = "SELECT idx, invocation_id FROM summaries WHERE kind = 'call'"
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


def test_what_is_erased_while_it_is_verified_is_no_finding(used, ran, monkeypatch):
    """The erasure comes into a shard that was walked already, of a call in one that was not."""
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.2)  # the walk reads while the erasure waits
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


# --- what stands beside no entry ------------------------------------------------------------------

STRAY_OUTCOME = """INSERT INTO summaries (idx, kind, at, invocation_id)
    SELECT 1000000, 'outcome', at, invocation_id FROM summaries
    WHERE kind = 'call' LIMIT 1"""


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
