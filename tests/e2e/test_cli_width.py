"""What people see fits them: a call in one row, and no word broken in a narrow terminal."""

from __future__ import annotations

import re

import pytest

COMMANDS = (
    "agentguard audit ",
    "agentguard evidence ",
)  # a command is copied as it stands, and is never cut
REASON = "the argument path must lead into the project, and to no hidden file"


def test_a_call_is_one_row_and_all_has_the_rest(told):
    rows = told.lines("audit", "list")
    shown = told.run("audit", "list", env={"COLUMNS": "80"})
    days = {row["at"][:10] for row in rows}
    lines = [line for line in shown.stdout.splitlines() if line[:10] not in days]
    calls = [line.split() for line in lines if line[15:].lstrip().startswith("call")]
    wanted = [row for row in rows if row["kind"] == "call"]
    assert [int(call[0]) for call in calls] == [row["index"] for row in wanted]
    assert calls[0][1:5] == [wanted[0]["at"][11:19], "call", "allow", "ok"]
    assert f"    | {REASON}" in lines
    hidden = len(rows) - len(wanted) - 2
    assert lines[-1] == f"and {hidden} entries of outcomes, keys, configuration and policy: --all"
    assert {line.split()[2] for line in lines[1:] if line[:1].isdigit()} == {"call", "identity"}
    every = told.run("audit", "list", "--all").stdout.splitlines()
    kinds = [line.split()[2] for line in every if line[:1].isdigit() and line[:10] not in days]
    assert kinds == [row["kind"] for row in rows]
    assert told.lines("audit", "list", "--all") == rows


@pytest.mark.parametrize("width", ["20", "80"])
def test_rows_fit_a_narrow_terminal_and_words_stay_whole_where_they_fit(told, width):
    narrow = {"COLUMNS": width}
    uri = told.json("agents", "show", "assistant")["instances"][0]["agent"]
    digest = told.json("policy", "check")["policy_sha256"]
    for command, words in (
        ("audit list", ["index", "kind", "outcome", "agent", "principal", "itself"]),
        ("audit list", ["decision", "tool", "resource", "read_file", "file:README.md"]),
        ("audit list", [r"evil[red]\x1b[31m\u202etool", "in_doubt", "interrupted"]),
        ("trace --last", ["read_file", "decision", "in_doubt"]),
        ("agents list", ["assistant", "authority", "instances", "files:read"]),
        ("agents show assistant", ["credential", uri]),
        ("audit show 8", [uri, digest, "read_file"]),
        ("doctor", [digest, "assistant:", "~/.local/state/agentguard"]),
        ("policy check", [f"{digest}"]),
    ):
        shown = told.run(*command.split(), env=narrow).stdout
        lines = shown.split("\n")
        too_wide = [line for line in lines if len(line) > int(width)]
        assert [line for line in too_wide if not any(map(line.__contains__, COMMANDS))] == []
        joined = re.sub(r"\\\n *\| ", "", shown)  # what is cut within a word ends with a backslash
        for word in words:
            assert word in (shown if len(word) < int(width) - 12 else joined), (command, word)
