"""Logs that were rolled back, damaged or given to a second writer.

What cannot be opened is refused by a typed error that says what to do, and is left as it was.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sqlite3
from typing import Any

import pytest
from edited_logs import PASSPHRASE, anchor_of, bodies, change, file_of, problems, use

from agentguard import Decision, Guard, StorageError
from agentguard.domain import domain
from agentguard.errors import KeyMaterialError, VerificationError
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.store.reader import StoredLog


def snapshot(place, folder, name):
    copy = folder / name
    shutil.copytree(place.config.state, copy)
    return copy


def restore(place, copy):
    shutil.rmtree(place.config.state)
    shutil.copytree(copy, place.config.state)


# --- what a guard that opens such a state does ----------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET note = x'00'",
        "UPDATE head SET note = CAST(replace(CAST(note AS TEXT), '26', '25') AS BLOB)",
        "UPDATE head SET note = CAST(replace(CAST(note AS TEXT), '/log/', '/lag/') AS BLOB)",
        "DELETE FROM head",
    ],
)
@pytest.mark.parametrize("anchored", [True, False], ids=["anchored", "unanchored"])
def test_a_log_whose_head_was_changed_is_not_written_any_further(used, statement, anchored):
    if not anchored:
        anchor_of(used).unlink()
    change(used, statement)
    before = file_of(used).read_bytes()
    with pytest.raises((StorageError, VerificationError)) as caught:
        used.open()
    assert caught.value.code in {
        *("storage.corrupt", "storage.rolled_back"),
        *("note.malformed", "signature.invalid", "checkpoint.origin"),
    }
    assert file_of(used).read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entry WHERE idx = 25",
        "UPDATE entry SET body = x'00' WHERE idx = 25",
        "UPDATE entry SET body = x'00', leaf = leaf_hash(x'00') WHERE idx = 25",
    ],
)
def test_a_changed_entry_is_found(used, ran, statement):
    """A guard reads no old entry: what decides later calls is in the map."""
    assert problems(used) == []
    change(used, statement)
    use(used, ran, 1)
    assert problems(used)


@pytest.mark.parametrize("peaks", ["x'00'", "zeroblob(length(peaks))", "x''"])
def test_nothing_is_written_on_peaks_that_are_not_the_heads(used, ran, peaks):
    """The peaks are what the next head is made of; nobody has signed them alone."""
    change(used, f"UPDATE head SET peaks = {peaks}")  # noqa: S608  of the test's own words
    with pytest.raises(StorageError) as caught:
        use(used, ran, 1)
    assert caught.value.code == "storage.corrupt"
    assert ran == []


def test_a_refused_state_is_given_back(used, tmp_path, ran):
    """Refusing must not keep the lock: once it is repaired, the same process can open it."""
    copy = snapshot(used, tmp_path, "copy")
    change(used, "UPDATE head SET peaks = zeroblob(length(peaks))")
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
    with pytest.raises(StorageError, match="Find out which") as caught:
        used.open()
    assert caught.value.code == "anchor.damaged"
    assert any("anchor" in what for what in problems(used))
    assert anchor.read_bytes() == note


def test_an_anchor_of_another_log_is_damage(used):
    anchor = anchor_of(used)
    anchor.write_bytes(anchor.read_bytes().replace(b"acme.example/log/", b"acme.example/lag/"))
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
    with pytest.raises(StorageError, match="is not the file that it has to be"):
        used.open()
    assert any("is not the file that it has to be" in what for what in problems(used))


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
        ("log.sqlite", "storage.missing"),
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


@pytest.mark.parametrize("name", ["log.sqlite", "."])
def test_a_state_without_a_log_has_none_to_read(used, name):
    path = used.config.state / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(StorageError) as caught:
        StoredLog.of(used.config.state)
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


def test_two_writers_write_one_log_in_turn(place, ran):
    first = place.open()
    agent = first.new_agent("reader")
    tool = first.tool(ran.append, name="note")
    agent.call(tool, 1)
    with place.open() as second:
        second.new_agent("reader").call(second.tool(ran.append, name="note"), 2)
        agent.call(tool, 3)
    agent.call(tool, 4)
    first.close()
    assert ran == [1, 2, 3, 4]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert place.seen().statuses == ["ok"] * 4


def test_a_writer_past_the_lock_does_not_fork_the_log(place, ran):
    """Somebody deletes the lock's file: SQLite's own lock and the head keep the writers apart."""
    first = place.open()
    agent = first.new_agent("reader")
    tool = first.tool(ran.append, name="note")
    agent.call(tool, 1)
    file_of(place).with_name("log.sqlite-lock").unlink()
    second = place.open()
    other, same = second.new_agent("reader"), second.tool(ran.append, name="note")
    for number in range(5):
        other.call(same, number)
        agent.call(tool, number)
    second.close()
    first.close()
    assert problems(place) == []
    assert place.seen().statuses == ["ok"] * 11


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


def test_what_an_anchor_has_not_seen_does_not_replace_what_it_has(used, tmp_path, ran):
    """A state from before grows past its anchor where nobody looks, and is then opened with it."""
    old = snapshot(used, tmp_path, "old")
    use(used, ran, 2)
    newest = snapshot(used, tmp_path, "new")
    restore(used, old)
    elsewhere = dataclasses.replace(used.config, anchor=None)
    home = domain.take_up(elsewhere, PASSPHRASE)
    unanchored: Any = Guard(Embedded(elsewhere, FunctionEngine(lambda _: Decision.allow()), home))
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
