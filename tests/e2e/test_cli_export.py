"""``agentguard audit export``: every entry with what stands beside it, for other programs."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from hashlib import sha256

import pytest
import rfc8785

MEMBERS = ["index", "leaf_hash", "entry", "attachments"]


@pytest.fixture
def exported(busy):
    """``exported(*ARGS)`` is what ``audit export ARGS`` prints, read."""

    def read(*args, of=busy):
        result = of.run("audit", "export", *args)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.isascii()
        return [json.loads(line) for line in result.stdout.splitlines()]

    return read


def places(rows):
    return [row["index"] for row in rows]


def test_it_holds_every_entry_in_the_order_of_the_list(busy, exported):
    rows = exported()
    listed = [json.loads(line) for line in busy.run("audit", "list", "--json").stdout.splitlines()]
    assert places(rows) == places(listed)
    assert [row["entry"]["kind"] for row in rows] == [row["kind"] for row in listed]
    assert all(list(row) == MEMBERS for row in rows)


def test_an_entry_is_what_its_hash_is_of(exported):
    """As audit-verify.md says: SHA-256 of a zero byte and the RFC 8785 form of the entry."""
    for row in exported():
        leaf = sha256(b"\0" + rfc8785.dumps(row["entry"])).hexdigest()
        assert leaf == row["leaf_hash"]


def test_attachments_are_decoded(exported):
    rows = exported("--kind", "call")
    first = rows[0]["attachments"]
    assert first["arguments"] == {"path": "a.txt"}
    assert first["input"]["args"] == {"path": "a.txt"}
    results = [row["attachments"] for row in exported("--kind", "outcome")]
    assert {"result": "the content of a.txt"} in results
    without = exported("--no-attachments")
    assert all(list(row) == MEMBERS[:-1] for row in without)
    assert places(without) == places(exported())


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (("--tool", "get_file"), 2),
        (("--decision", "deny"), 2),
        (("--in-doubt",), 1),
        (("--tool", "nope"), 0),
        (("--kind", "call", "-n", "4"), 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_it_takes_the_filters_of_the_list(busy, exported, filters, count):
    listed = busy.run("audit", "list", *filters, "--json").stdout.splitlines()
    assert places(exported(*filters)) == places(map(json.loads, listed))
    assert len(listed) == count


def test_a_file_of_ones_own_that_is_not_overwritten(busy, exported, tmp_path):
    file = tmp_path / "log.jsonl"
    written = busy.run("audit", "export", "-o", file)
    assert (written.returncode, written.stderr) == (0, "")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == exported()
    assert written.stdout == f"{file} holds {len(rows)} entries\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("mine")
    refused = busy.run("audit", "export", "-o", file)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [storage.exists]: ")
    assert file.read_text() == "mine"
    forced = busy.run("audit", "export", "-o", file, "--force", "--tool", "get_file")
    assert forced.returncode == 0
    assert len(file.read_text().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_folder_that_is_not_there(busy, tmp_path):
    result = busy.run("audit", "export", "-o", tmp_path / "none" / "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [storage.readonly]: ")


def change(project, statement, *parameters):
    with closing(sqlite3.connect(project.state / "log.sqlite")) as connection, connection:
        assert connection.execute(statement, parameters).rowcount == 1


def test_changed_attachments_are_left_out_and_named(exported, reshaped):
    call = exported("--kind", "call", of=reshaped)[0]
    change(
        reshaped,
        "UPDATE attachment SET data = ? WHERE idx = ? AND role = 'arguments'",
        b'{"path":"innocent"}',
        call["index"],
    )
    (changed,) = [row for row in exported(of=reshaped) if places([row]) == places([call])]
    assert list(changed) == [*MEMBERS, "problems"]
    assert list(changed["attachments"]) == ["input"]
    assert "were changed" in changed["problems"][0]
    assert changed["entry"] == call["entry"]


def test_an_entry_that_cannot_be_read_is_null_and_named(exported, reshaped):
    change(reshaped, "UPDATE entry SET body = ? WHERE idx = 5", b"\x1b[2J")
    rows = exported(of=reshaped)
    (damaged,) = [row for row in rows if row["entry"] is None]
    assert damaged["index"] == 5
    assert damaged["leaf_hash"] == sha256(b"\0\x1b[2J").hexdigest()
    assert "can't be read" in damaged["problems"][0]
    assert len(rows) == len(exported())
