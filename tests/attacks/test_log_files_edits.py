"""Edits of a log's file: entries and what is beside them that were changed, moved or removed.

The attacker can write the state and uses SQLite itself. ``examine`` names the place of each edit,
with the trust document and the anchor, which lie outside. Indexes and schemas are in
test_log_files_schema.py, rollbacks and damage in test_log_files_rollback.py.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from datetime import UTC, datetime

import pytest
from edited_logs import PASSPHRASE, change, file_of, problems, use

from agentguard import StorageError
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.domain import administration, keystore
from agentguard.domain.verify import examine
from agentguard.errors import VerificationError
from agentguard.storage import sqlite
from agentguard.store.reader import StoredLog


def test_the_untouched_twin_verifies_and_is_anchored(used):
    report = used.examine()
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()


# --- edits in place ------------------------------------------------------------------------------

EDITS = {
    "a byte of an entry": (
        (
            "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'allow', 'aloow') AS BLOB)"
            " WHERE idx = 24"
        ),
        24,
    ),
    "a time": (
        (
            'UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), \'"at":"20\', \'"at":"19\')'
            " AS BLOB) WHERE idx = 10"
        ),
        10,
    ),
    "a whole entry": ("UPDATE entry SET body = x'7b7d' WHERE idx = 9", 9),
    "an empty entry": ("UPDATE entry SET body = x'' WHERE idx = 9", 9),
    "one entry over another": (
        "UPDATE entry SET body = (SELECT body FROM entry WHERE idx = 10) WHERE idx = 12",
        12,
    ),
    "an entry in the middle is gone": ("DELETE FROM entry WHERE idx = 9", 10),
    "the first entry is gone": ("DELETE FROM entry WHERE idx = 0", 1),
    "the last entry is gone": ("DELETE FROM entry WHERE idx = 25", 25),
    "all entries are gone": ("DELETE FROM entry", 0),
    "an entry is added": (
        (
            "INSERT INTO entry (log, idx, kind, at, leaf, body)"
            " SELECT log, 26, kind, at, leaf, body FROM entry WHERE idx = 25"
        ),
        None,
    ),
    "arguments beside the log": (
        "UPDATE attachment SET data = x'7b7d' WHERE role = 'arguments' AND idx = 10",
        10,
    ),
    "a salt beside the log": ("UPDATE attachment SET salt = zeroblob(32) WHERE idx = 11", 11),
    "a commitment beside the log": ("UPDATE attachment SET commitment = 'x' WHERE idx = 12", 12),
    "a result on another entry": (
        "UPDATE attachment SET idx = idx - 1 WHERE role = 'result' AND idx = 15",
        14,
    ),
    "a result is gone": ("DELETE FROM attachment WHERE role = 'result' AND idx = 15", 15),
    "all that is kept is gone": ("DELETE FROM attachment", 6),
    "a table is gone": ("DROP TABLE entry", None),
    "a summary names another tool": ("UPDATE entry SET tool = 'x' WHERE idx = 10", 10),
    "a summary has another time": ("UPDATE entry SET at = '1999' WHERE idx = 12", 12),
    "a summary hides a call": ("UPDATE entry SET kind = 'key' WHERE idx = 14", 14),
    "a summary makes a credential of a call": (
        "UPDATE entry SET kind = 'identity' WHERE idx = 14",
        14,
    ),
    "a summary is another's": (
        (
            "UPDATE entry SET invocation_id ="
            " (SELECT invocation_id FROM entry WHERE idx = 12) WHERE idx = 10"
        ),
        10,
    ),
    "a summary is gone": (
        "UPDATE entry SET kind = '', at = '', tool = NULL, invocation_id = NULL WHERE idx = 12",
        12,
    ),
    "text that is no UTF-8": (
        "UPDATE attachment SET role = CAST(x'ff' AS TEXT) WHERE role = 'result'",
        None,
    ),
    "a hash beside an entry": ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 9", None),
    "a hash of the tree": ("UPDATE tree SET hash = zeroblob(32)", None),
    "the tree is gone": ("DELETE FROM tree", None),
    "a row of the map": ("INSERT INTO map VALUES (0, '', x'00')", None),
    "no head": ("DELETE FROM head", None),
    "a head is damaged": ("UPDATE head SET note = x'00'", None),
    "a head is no head": ("UPDATE head SET note = peaks", None),
}
"""What somebody does to a log of 26 entries, and where; None for the log as a whole."""


HASHES = "UPDATE entry SET leaf = leaf_hash(body)"
CAREFUL = {
    f"{name}, with hashes to match": (edit, HASHES, at)
    for name, (edit, at) in EDITS.items()
    if " SET body = " in edit
}
ALL = {name: (edit, "SELECT 1", at) for name, (edit, at) in EDITS.items()} | CAREFUL


@pytest.mark.parametrize(("edit", "then", "at"), ALL.values(), ids=ALL)
def test_every_edit_is_found_and_located(used, edit, then, at):
    change(used, edit, then)
    where = [problem.index for problem in used.examine().problems]
    assert at in where
    # of what is found before, nothing was whole: but the log as a whole
    assert all(index is None or at is None or index in {0, 26} or index >= at for index in where)


@pytest.mark.parametrize("gone", [None, 0, 4, 7, 25])
def test_of_a_log_that_lacks_an_entry_no_call_is_proved(used, gone):
    """A call before the gap as little as one behind it."""
    trust = keystore.load_trust(used.config.state)
    if gone is not None:
        change(used, ("DELETE FROM entry WHERE idx = ?", [gone]))
    with closing(StoredLog.of(used.config.state)) as reader:
        parsed = [parse_entry(body) for _index, body in reader.entries()]
        calls = [one for one in parsed if isinstance(one, CallEntry)]
        for call in (calls[0], calls[-1]):
            refused = pytest.raises((StorageError, VerificationError), match="audit verify")
            with refused if gone is not None else nullcontext():
                prove_call(reader, trust, str(call.invocation_id))


def test_problems_without_end_are_counted(place, ran):
    use(place, ran, 60)
    change(place, "UPDATE entry SET at = '1999'")
    report = place.examine()
    assert [problem.index for problem in report.problems] == [*range(100), None]
    assert report.problems[-1].what == f"and {report.entries - 100} more"


def test_two_entries_that_swap_their_places_are_found(used):
    change(
        used,
        "UPDATE entry SET idx = -1 WHERE idx = 9",
        "UPDATE entry SET idx = 9 WHERE idx = 11",
        "UPDATE entry SET idx = 11 WHERE idx = -1",
    )
    where = [problem.index for problem in used.examine().problems]
    assert 9 in where
    assert 0 in where  # no entry is vouched for by the head any more


# --- what is gone ---------------------------------------------------------------------------------


def erase(place, invocation_id):
    return administration.erase(
        place.config, PASSPHRASE, invocation_id, note="asked for", now=datetime.now(UTC)
    )


def ids_of(place):
    """The calls of the log, by their index."""
    with closing(sqlite3.connect(file_of(place))) as connection:
        statement = "SELECT idx, invocation_id FROM entry WHERE kind = 'call'"
        return dict(connection.execute(statement).fetchall())


def test_what_is_gone_without_an_erasure_on_record_is_found(used):
    change(used, "DELETE FROM attachment WHERE idx IN (10, 15)")
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
    change(used, "DELETE FROM attachment WHERE idx IN (10, 11)")
    assert problems(used) == []
    change(used, "DELETE FROM attachment WHERE idx = 12")
    (problem,) = used.examine().problems
    assert problem.index == 12


def test_emptied_rows_are_gone_as_well(used):
    """Who writes what an erasure leaves behind has put none on record."""
    change(used, "UPDATE attachment SET commitment = '', salt = x'', data = x'' WHERE idx = 10")
    (problem,) = used.examine().problems
    assert (problem.index, "is gone" in problem.what) == (10, True)


def test_of_much_that_is_gone_the_number_is_told(place, ran):
    use(place, ran, 30)
    change(place, "DELETE FROM attachment")
    found = place.examine().problems
    assert [problem.index for problem in found] == [*range(6, 26), None]
    assert "40 more entries: 60 have lost what was kept" in found[-1].what


def test_what_is_erased_while_it_is_verified_is_no_finding(used, monkeypatch):
    """The erasure comes past the head that is verified; what it erases was not read yet."""
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.2)  # the walk reads while the erasure waits
    wanted = ids_of(used)[24]
    recorded = []

    def progress(entries):
        if entries == 3:
            recorded.append(erase(used, wanted).recorded)

    trust = keystore.load_trust(used.config.state)
    with closing(StoredLog.of(used.config.state)) as reader:
        report = examine(reader, trust, anchor=used.config.anchor, progress=progress)
    assert recorded[0].index == 26
    assert report.problems == ()
    change(used, "DELETE FROM attachment WHERE idx = 10")
    assert [problem.index for problem in used.examine().problems] == [10]


# --- what stands beside no entry ------------------------------------------------------------------


@pytest.mark.parametrize("index", [1000000, -1])
def test_what_stands_beside_no_entry_is_found(used, index):
    """It would be in the way of a later entry, or outlive an erasure."""
    row = "INSERT INTO attachment VALUES (0, ?, 'result', 'x', x'00', x'7b7d')"
    change(used, (row, (index,)))
    assert f"beside an entry {index}" in problems(used)[0]


def test_an_outcome_past_the_head_is_found_and_not_built_on(used, ran):
    """It would hide a call in doubt, and no signed head covers it."""
    row = "INSERT INTO entry (log, idx, kind, at, invocation_id, leaf, body)"
    copied = "kind, at, invocation_id, leaf, body FROM entry WHERE idx = 25"
    change(used, f"{row} SELECT log, 26, {copied}")
    assert any("under no head" in what for what in problems(used))
    with pytest.raises(StorageError) as caught:
        use(used, ran, 1)
    assert caught.value.code == "storage.corrupt"
    assert ran == []
    change(used, "DELETE FROM entry WHERE idx = 26")
    use(used, ran, 1)
    assert problems(used) == []
