"""``agentguard audit list`` and ``show``: what the log says, and nothing that a model made up."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

MEMBERS = [
    "index",
    "kind",
    "at",
    "agent",
    "principal",
    "proved",
    "tool",
    "resource",
    "decision",
    "enforced",
    "reason",
    "invocation_id",
    "outcome",
    "client",
    "isolation",
    "shown",
]
HOSTILE_TOOL = "evil[red]\x1b[31m\u202etool"
REFUSED = "the argument path must lead into the project, and to no hidden file"
HOSTILE_PATH = "[bold]a\x1b[2J\u202eb\nc\x9b1m"


def call_of(told, tool: str, nth: int) -> dict:
    rows = told.lines("audit", "list")
    calls = [r for r in rows if r["kind"] == "call" and r["tool"] == tool]
    return calls[nth]


def unprintable(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}


def tamper(state: Path, statement: str, *parameters: object) -> None:
    with sqlite3.connect(state / "log.sqlite") as connection:
        changed = connection.execute(statement, parameters).rowcount
    connection.close()
    assert changed == 1


def test_list_has_an_object_for_every_entry(told):
    rows = told.lines("audit", "list")
    assert all(list(row) == MEMBERS for row in rows)
    assert [row["index"] for row in rows] == list(range(len(rows)))
    kinds = [row["kind"] for row in rows]
    assert kinds[:6] == ["key", "key", "key", "config", "policy", "identity"]
    assert kinds.count("call") == 8
    assert kinds.count("outcome") == 5
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", row["at"])
        if row["kind"] not in {"call", "outcome", "identity"}:
            assert set(map(row.get, MEMBERS[4:])) == {None}


def test_list_tells_what_became_of_each_call(told):
    rows = [row for row in told.lines("audit", "list") if row["kind"] == "call"]
    assert [(r["tool"], r["decision"], r["outcome"], r["reason"]) for r in rows] == [
        ("read_file", "allow", "ok", None),
        ("read_file", "allow", "error", None),
        ("read_file", "allow", "unknown", None),
        ("read_file", "deny", None, REFUSED),
        ("read_file", "allow", "ok", None),
        (HOSTILE_TOOL, "deny", None, "no rule of the policy allows this call"),
        ("read_file", "allow", None, "interrupted before it ran"),
        ("read_file", "allow", "in_doubt", None),
    ]
    for row in rows:
        assert row["agent"].startswith("spiffe://project.internal/agent/assistant/")
        assert row["principal"] == "agent:assistant"
        assert re.fullmatch(r"[0-9a-f]{32}", row["invocation_id"])


def test_an_outcome_names_its_call(told):
    rows = told.lines("audit", "list")
    calls = {r["invocation_id"]: r for r in rows if r["kind"] == "call"}
    outcomes = [row for row in rows if row["kind"] == "outcome"]
    for row in outcomes:
        call = calls[row["invocation_id"]]
        assert row["index"] > call["index"]
        assert (row["agent"], row["tool"]) == (call["agent"], call["tool"])
        assert (row["decision"], row["outcome"]) == (None, call["outcome"])


@pytest.mark.parametrize(("limit", "expected"), [("3", 3), ("0", None)])
def test_a_limit_keeps_the_newest(told, limit, expected):
    every = told.lines("audit", "list")
    assert told.lines("audit", "list", "--last", limit) == every[-expected if expected else 0 :]


def test_the_table_has_every_entry_and_says_when_it_has_not(told):
    whole = told.run("audit", "list").stdout
    for word in ("read_file", "allow", "deny", "in_doubt", "unknown", "hidden file"):
        assert word in whole
    cut = told.run("audit", "list", "--last", "2").stdout
    assert "the newest 2;" in cut


def test_nothing_from_a_model_steers_the_screen(told):
    hostile = call_of(told, "read_file", 4)["index"]
    evil = call_of(told, HOSTILE_TOOL, 0)["index"]
    for command in (
        ["audit", "list"],
        ["audit", "show", str(hostile)],
        ["audit", "show", str(evil)],
    ):
        shown = told.run(*command).stdout
        assert unprintable(shown) == set()
    assert r"evil[red]\x1b[31m\u202etool" in told.run("audit", "list").stdout
    for command in (["audit", "list"], ["audit", "show", str(hostile)]):
        assert told.run(*command, "--json").stdout.isascii()


def test_nothing_from_a_model_steers_a_terminal(told):
    """On a terminal there are colours, and they are ours alone."""
    leader, follower = pty.openpty()
    index = str(call_of(told, "read_file", 4)["index"])
    seen = b""
    with subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "audit", "show", index],
        stdout=follower,
        stderr=follower,
        cwd=told.folder,
        env=told.environment | {"TERM": "xterm-256color"},
    ):
        os.close(follower)
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            seen += data
    os.close(leader)
    text = seen.decode().replace("\r\n", "\n")
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert unprintable(plain) == set()
    assert r"\u001b[2J" in plain
    assert "[bold]a" in plain


def test_show_tells_a_call_from_beginning_to_end(told):
    call = call_of(told, "read_file", 0)
    story = told.json("audit", "show", call["invocation_id"])
    assert list(story) == [
        "index",
        "at",
        "invocation_id",
        "agent",
        "principal",
        "proved",
        "credential",
        "delegation",
        "inside",
        "inside_call",
        "requirements",
        "request",
        "approvals",
        "tool",
        "arguments",
        "input",
        "facts",
        "resource",
        "task_id",
        "traceparent",
        "decision",
        "mode",
        "enforced",
        "code",
        "reasons",
        "engine",
        "policy_sha256",
        "evaluation",
        "config_sha256",
        "secrets",
        "requests",
        "receipts",
        "outcome",
        "problems",
        "resolution",
        "erasure",
        "checkpoint",
    ]
    assert story["arguments"] == {"path": "README.md"}
    assert story["input"]["args"] == story["arguments"]
    assert story["resource"] == "file:README.md"
    assert story["tool"]["origin"] == "__main__:read_file"
    assert (story["inside"], story["facts"]) == (None, {"paths": {"path": "README.md"}})
    assert story["credential"]["type"] == "assistant"
    assert (story["decision"], story["code"], story["problems"]) == ("allow", "", [])
    assert story["engine"]["name"] == "rego"
    assert story["outcome"]["status"] == "ok"
    assert story["outcome"]["result"] == "the content of README.md"
    shown = told.run("audit", "show", call["invocation_id"])
    assert shown.returncode == 0
    for said in (call["agent"], "read_file", "README.md", "allow", "the content of", "hold"):
        assert said in shown.stdout


@pytest.mark.parametrize(
    ("nth", "said"),
    [
        (1, ["error", "builtins.FileNotFoundError"]),
        (2, ["unknown", "builtins.KeyboardInterrupt"]),
        (3, ["deny [policy.denied]", "hidden file", "the tool did not run"]),
        (5, ["interrupted before it ran"]),
        (6, ["in doubt"]),
    ],
)
def test_show_says_how_it_ended(told, nth, said):
    shown = told.run("audit", "show", str(call_of(told, "read_file", nth)["index"]))
    assert shown.returncode == 0
    for words in said:
        assert words in shown.stdout


def test_a_call_is_found_by_any_of_its_names(told):
    call = call_of(told, "read_file", 0)
    by_id = told.json("audit", "show", call["invocation_id"])
    outcome = by_id["outcome"]["index"]
    for name in (str(call["index"]), str(outcome)):
        assert told.json("audit", "show", name) == by_id


def test_an_entry_that_is_no_call_is_shown_as_it_stands(told):
    assert told.json("audit", "show", "3")["kind"] == "config"
    assert "trust_domain" in told.run("audit", "show", "3").stdout


@pytest.mark.parametrize("name", ["999", "0/3", "f" * 32])
def test_a_call_that_is_not_there(told, name):
    result = told.run("audit", "show", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [call.unknown]: ")


def test_show_finds_changed_arguments(changed):
    call = call_of(changed, "read_file", 0)
    statement = "UPDATE attachment SET data = ? WHERE idx = ? AND role = 'arguments'"
    tamper(changed.state, statement, b'{"path":"innocent"}', call["index"])
    result = changed.run("audit", "show", call["invocation_id"])
    assert result.returncode == 1
    assert "the arguments kept beside the log were changed" in result.stdout
    assert "innocent" not in result.stdout
    twin = changed.run("audit", "show", call_of(changed, "read_file", 1)["invocation_id"])
    assert twin.returncode == 0


def test_show_finds_a_credential_of_another_issuer(changed, project):
    """Somebody's own trust domain vouches for nothing here."""
    assert project.run("init", "--trust-domain", "project.internal").returncode == 0
    assert project.run("trust", "export", "-o", "other.json").returncode == 0
    call = call_of(changed, "read_file", 0)["invocation_id"]
    story = changed.json("audit", "show", call, "--trust", project.folder / "other.json", code=1)
    assert story["credential"] is None
    assert "the credential does not hold" in story["problems"][0]


def test_a_damaged_entry_is_listed_as_damaged(changed):
    call = call_of(changed, "read_file", 0)
    tamper(
        changed.state,
        "UPDATE entry SET body = ? WHERE idx = ?",
        b'{"kind":"\x1b[2J',
        call["index"],
    )
    rows = changed.lines("audit", "list")
    damaged = rows[call["index"]]
    assert (damaged["kind"], damaged["at"], damaged["tool"]) == ("damaged", None, None)
    assert "can't be read" in damaged["reason"]
    assert rows[call["index"] + 1]["kind"] == "outcome"
    shown = changed.run("audit", "list")
    assert shown.returncode == 0
    assert "damaged" in shown.stdout
    assert unprintable(shown.stdout) == set()
    other = changed.run("audit", "show", call_of(changed, "read_file", 1)["invocation_id"])
    assert other.returncode == 0


def test_reading_needs_no_passphrase_and_no_lock(changed):
    shutil.rmtree(changed.home / ".config")
    held = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
    with subprocess.Popen(
        [sys.executable, "-c", held + "print(1, flush=True); input()", changed.state / "log.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        for command in (["audit", "list"], ["audit", "show", "8"], ["audit", "verify"]):
            assert changed.run(*command).returncode == 0
        assert changed.run("agents", "list").returncode == 0
        assert changed.run("trust", "export").returncode == 0
        holder.communicate(b"\n")


def test_a_state_can_be_named_from_anywhere(told, tmp_path):
    here = [json.dumps(row) for row in told.lines("audit", "list")]
    result = told.run("audit", "list", "--json", "--state", told.state, cwd=tmp_path)
    assert result.stdout.splitlines() == here
    result = told.run("audit", "list", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error [config.missing]: ")


def test_a_reader_that_goes_away_is_no_error(told):
    command = f"'{sys.executable}' -m agentguard.cli audit list --json | head -n 1"
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=told.folder,
        env=told.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def test_a_log_with_other_sql_types(changed):
    """A file made by hand need not keep to the types that agentguard's own schema enforces."""
    with sqlite3.connect(changed.state / "log.sqlite") as connection:
        connection.executescript(
            "CREATE TABLE other AS SELECT * FROM entry;"
            "DROP TABLE entry; ALTER TABLE other RENAME TO entry;"
            "UPDATE entry SET body = NULL WHERE idx = 3;"
            "UPDATE entry SET idx = 'x' WHERE idx = 5;"
        )
    connection.close()
    report = changed.json("audit", "verify", code=1)
    assert report["anchored"] is False
    assert any("that agentguard has not made" in problem["what"] for problem in report["problems"])
    for command in ("audit list", "audit show 4", "agents list"):
        result = changed.run(*command.split())
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error [storage.corrupt]: ")
