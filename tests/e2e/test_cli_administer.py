"""``resolve`` and ``erase``, as an administrator types them."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing

import pytest

from agentguard.cli.audit import lookup
from agentguard.signing import canonical

NEVER = "0" * 32


@pytest.fixture
def doubtful(changed):
    (invocation_id,) = changed.json("audit", "verify")["in_doubt"]
    return invocation_id


def calls(project):
    return [row for row in project.lines("audit", "list") if row["kind"] == "call"]


def ended(project):
    """The id of a call that ran and returned."""
    return next(row["invocation_id"] for row in calls(project) if row["outcome"] == "ok")


def refused(result, code):
    assert result.returncode == 2
    assert result.stdout == ""
    assert f"[{code}]" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_call_in_doubt_is_resolved(changed, doubtful):
    result = changed.run("resolve", doubtful, "--not-ran", "--note", "the mail is not out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"resolved: {doubtful} did not run (entry ")
    after = changed.json("audit", "verify")
    assert (after["ok"], after["in_doubt"], after["problems"]) == (True, [], [])
    again = changed.run("resolve", doubtful, "--ran", "--note", "no, it is")
    refused(again, "call.settled")
    assert "its resolution is on record" in again.stderr


def test_resolved_as_json(changed, doubtful):
    told = changed.json("resolve", doubtful, "--ran", "--note", "asked the bank")
    assert told.keys() == {"invocation_id", "ran", "index"}
    assert (told["invocation_id"], told["ran"]) == (doubtful, True)
    assert changed.json("audit", "verify")["in_doubt"] == []


def names_of(project, invocation_id):
    (call,) = [row for row in calls(project) if row["invocation_id"] == invocation_id]
    return [invocation_id[:8], invocation_id[:-1], str(call["index"])]


@pytest.mark.parametrize("nth", range(3))
def test_a_call_has_the_names_that_show_takes(changed, doubtful, nth):
    name = names_of(changed, doubtful)[nth]
    result = changed.run("resolve", name, "--ran", "--note", "n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"resolved: {doubtful} ran ")
    call = ended(changed)
    erased = changed.json("erase", names_of(changed, call)[nth], "--yes", "--note", "n")
    assert erased["invocation_id"] == call
    assert data_of(changed, call) == []


@pytest.mark.parametrize(
    "command", [["resolve", "--ran"], ["erase", "--yes"], ["evidence", "make", "-o-"]]
)
def test_what_names_no_call_is_refused(changed, monkeypatch, command):
    note = [] if command[0] == "evidence" else ["--note", "n"]
    before = changed.lines("audit", "list")
    for name in ("0/3", "9999", "f" * 8, before[-1]["agent"][:8]):
        refused(changed.run(*command, *note, name), "call.unknown")
    monkeypatch.setattr(lookup, "_MIN_PREFIX", 0)
    refused(changed.run(*command, *note, ""), "call.ambiguous")
    assert changed.lines("audit", "list") == before


def test_what_is_missing_is_asked_for(changed, doubtful):
    without = changed.run("resolve", doubtful, "--note", "n")
    assert without.returncode == 2
    assert "add --ran or --not-ran" in without.stderr
    assert changed.run("resolve", doubtful, "--ran").returncode == 2
    assert changed.run("resolve", "--ran", "--note", "n").returncode == 2
    assert changed.json("audit", "verify")["in_doubt"] == [doubtful]


@pytest.mark.parametrize("command", [["resolve", "--ran"], ["erase", "--yes"]])
@pytest.mark.parametrize("unknown", [NEVER, b"\xff\xfe".decode(errors="surrogateescape")])
def test_an_unknown_call(changed, command, unknown):
    result = changed.run(*command, "--note", "n", unknown)
    refused(result, "call.unknown")
    assert "agentguard audit list" in result.stderr


def test_a_call_that_ended_or_was_denied_is_not_resolved(changed):
    result = changed.run("resolve", ended(changed), "--ran", "--note", "n")
    refused(result, "call.settled")
    assert "its outcome is on record" in result.stderr
    denied = next(row["invocation_id"] for row in calls(changed) if row["decision"] == "deny")
    result = changed.run("resolve", denied, "--ran", "--note", "n")
    refused(result, "call.settled")
    assert "it was denied" in result.stderr


@pytest.mark.parametrize("lie", [{"ran": "yes"}, {"ran": None}, {"more": 1}, {"note": 7}])
def test_what_is_no_resolution_settles_nothing(changed, doubtful, lie):
    """What the list reads of one is read as ``audit verify`` reads it."""
    place = changed.json("resolve", doubtful, "--ran", "--note", "n")
    with closing(sqlite3.connect(changed.state / "log.sqlite")) as connection, connection:
        where = "WHERE idx = ?"
        (body,) = connection.execute(
            f"SELECT body FROM entry {where}",  # noqa: S608
            [place["index"]],
        ).fetchone()
        members = json.loads(body)
        statement = json.loads(base64.b64decode(members["statement"]["payload"]))
        statement["predicate"] |= lie
        payload = base64.b64encode(canonical.dumps(statement)).decode()
        members["statement"]["payload"] = payload
        connection.execute(
            f"UPDATE entry SET body = ? {where}",  # noqa: S608
            [canonical.dumps(members), place["index"]],
        )
    rows = {row["index"]: row for row in changed.lines("audit", "list")}
    assert rows[place["index"]]["kind"] == "damaged"
    (call,) = [row for row in rows.values() if row["outcome"] == "in_doubt"]
    assert call["invocation_id"] == doubtful
    assert changed.json("audit", "show", doubtful)["resolution"] is None
    assert not changed.json("audit", "verify", code=1)["ok"]


@pytest.mark.parametrize("note", ["line\nline \x1b[31mred \u202e", "\u20ac" * 5000])
def test_any_text_is_a_note(changed, doubtful, note):
    result = changed.run("resolve", doubtful, "--ran", "--note", note)
    assert result.returncode == 0, result.stderr
    assert changed.json("audit", "verify")["ok"]


def test_a_note_that_is_no_text_is_refused(changed, doubtful):
    note = b"\xff".decode(errors="surrogateescape")
    result = changed.run("resolve", doubtful, "--ran", "--note", note)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert changed.json("audit", "verify")["in_doubt"] == [doubtful]


def test_without_the_passphrase_nothing_is_settled(changed, doubtful):
    wrong = {"AGENTGUARD_PASSPHRASE": "not it"}
    for command in (["resolve", "--ran"], ["erase", "--yes"]):
        result = changed.run(*command, "--note", "n", doubtful, env=wrong)
        refused(result, "key.passphrase")
    assert changed.json("audit", "verify")["in_doubt"] == [doubtful]


def data_of(project, invocation_id):
    with closing(sqlite3.connect(project.state / "log.sqlite")) as connection:
        return connection.execute(
            "SELECT role, data FROM attachment WHERE data <> x'' AND idx IN "
            "(SELECT idx FROM entry WHERE invocation_id = ?) ORDER BY role",
            [invocation_id],
        ).fetchall()


def test_a_call_is_erased(changed):
    invocation_id = ended(changed)
    assert [role for role, _data in data_of(changed, invocation_id)] == [
        "arguments",
        "input",
        "result",
    ]
    needle = b"the content of README.md"
    assert needle in (changed.state / "log.sqlite").read_bytes()
    result = changed.run("erase", invocation_id, "--yes", "--note", "GDPR, art. 17")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"erased: 3 attachments of {invocation_id} (entry ")
    assert data_of(changed, invocation_id) == []
    files = [path for path in changed.home.parent.rglob("*") if path.is_file()]
    assert not any(needle in path.read_bytes() for path in files)
    after = changed.json("audit", "verify")
    assert (after["ok"], after["problems"]) == (True, [])
    again = changed.run("erase", invocation_id, "--yes", "--note", "again")
    assert again.returncode == 0
    assert "no attachments, because none were left" in again.stdout


def test_the_story_of_an_erased_call_says_so(changed):
    invocation_id = ended(changed)
    before = changed.run("audit", "show", invocation_id).stdout
    assert "README.md" in before
    assert "erased" not in before
    changed.run("erase", invocation_id, "--yes", "--note", "GDPR, art. 17")
    story = changed.run("audit", "show", invocation_id)
    assert story.returncode == 0, story.stderr
    assert "erased" in story.stdout
    assert "the content of README.md" not in story.stdout
    proof = changed.folder / "proof.json"
    proved = changed.run("evidence", "make", invocation_id, "-o", proof)
    assert proved.returncode == 0, proved.stderr
    assert b"content of README" not in proof.read_bytes()


def test_it_asks_first(changed):
    invocation_id = ended(changed)
    for answer, code in (("n\n", 1), ("\n", 1), ("", 2), ("y\n", 0)):
        result = changed.run("erase", invocation_id, "--note", "n", input=answer)
        assert result.returncode == code, result.stderr
        said = " ".join(result.stderr.split())
        assert ("nothing was done: run the command in a terminal, or with --yes" in said) is (
            answer == ""
        )
        assert (data_of(changed, invocation_id) == []) is (code == 0)


def test_erased_as_json_prints_nothing_else(changed):
    invocation_id = ended(changed)
    told = changed.json("erase", invocation_id, "--yes", "--note", "n")
    assert told.keys() == {"invocation_id", "attachments", "repeats", "index"}
    assert (told["attachments"], told["repeats"]) == (3, [])
    asked = changed.run("erase", invocation_id, "--note", "n", "--json", input="y\n")
    assert asked.returncode == 0
    assert json.loads(asked.stdout)["attachments"] == 0  # the question is no part of it


def test_the_help_says_what_is_out_of_reach(changed):
    text = " ".join(changed.run("erase", "--help").stdout.split())
    assert "Copies elsewhere (backups, exports, evidence files) are not erased." in text


def test_without_a_configuration_it_says_what_to_do(project):
    result = project.run("resolve", NEVER, "--ran", "--note", "n")
    assert result.returncode == 2
    assert "agentguard init" in result.stderr
