"""The stories of calls in a log of several guards, and what the administrator has added to them."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from agentguard.cli.audit import lookup
from agentguard.store.sqlite import path_in

REDACTED = r"""
from agentguard import Guard
with Guard.open("agentguard.toml") as guard:
    agent = guard.new_agent("assistant")

    @guard.tool(requires=["files:read"])
    def get_file(path: str, password: str) -> str:
        return "secret of " + path

    agent.call(get_file, "a.txt", "hunter2")
"""

PAIR = re.compile(r" +\| |   ")  # between a name and what belongs to it, in a sheet


@pytest.fixture
def calls(busy):
    """All calls, in their order."""
    listed = busy.run("audit", "list", "--json", "--kind", "call").stdout
    return [json.loads(line) for line in listed.splitlines()]


@pytest.fixture
def told():
    """``told(project, NAME, ...)`` is the story that ``audit show NAME ... --json`` tells."""

    def run(project, *args, code=0):
        result = project.run("audit", "show", *args, "--json")
        assert result.returncode == code, result.stderr
        return json.loads(result.stdout)

    return run


def test_a_call_of_any_guard_is_found_by_each_of_its_names(told, busy, calls):
    for call in calls:
        story = told(busy, call["invocation_id"])
        assert story["index"] == call["index"]
        assert story["problems"] == []
        assert story["checkpoint"]["size"] > call["index"]
        for name in (call["invocation_id"][:8], str(call["index"])):
            assert told(busy, name) == story
        if story["outcome"] is not None:
            assert told(busy, str(story["outcome"]["index"])) == story


def test_a_name_is_of_one_call_or_refused(busy, calls, monkeypatch):
    for name in (calls[0]["invocation_id"][:7], "f" * 8, "0/3", "9999", "00000000"):
        result = busy.run("audit", "show", name)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error [call.unknown]: ")
        assert "agentguard audit list" in result.stderr
    monkeypatch.setattr(lookup, "_MIN_PREFIX", 0)
    result = busy.run("audit", "show", "")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [call.ambiguous]: 6 calls begin with ")
    assert sum(call["invocation_id"] in result.stderr for call in calls) == 5


def test_a_trace_tells_all_its_calls(busy, calls):
    traced = f"{0xABC:032x}"
    stories = busy.run("audit", "show", "--trace", traced, "--json").stdout.splitlines()
    ids = [json.loads(story)["invocation_id"] for story in stories]
    assert ids == [calls[0]["invocation_id"], calls[2]["invocation_id"]]
    shown = busy.run("audit", "show", "--trace", traced).stdout
    assert shown.count("\ndecision ") == 2
    unknown = busy.run("audit", "show", "--trace", "0" * 32)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error [call.unknown]: ")


@pytest.mark.parametrize("args", [(), ("8", "--trace", "0" * 32)])
def test_a_call_or_a_trace_is_asked_for(busy, args):
    result = busy.run("audit", "show", *args)
    assert (result.returncode, result.stdout) == (2, "")
    assert "name a call, or a trace" in result.stderr


def test_the_story_says_who_what_why_and_where(busy, calls):
    call = calls[1]
    shown = busy.run("audit", "show", call["invocation_id"])
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = dict(two for line in shown.stdout.splitlines() if len(two := PAIR.split(line, 1)) == 2)
    said = {name: value.strip() for name, value in lines.items()}
    assert call["agent"] in said["agent"]
    assert said["credential"].startswith("type assistant, valid from ")
    assert said["for"] == "agent:reviewer, on its own authority"
    assert (said["tool"], said["arguments"]) == ("get_file", '{"path": "b.txt"}')
    assert said["task_id"] == "task-1"
    assert said["policy"].startswith("rego ")
    assert (said["decision"], said["outcome"]) == ("allow", "ok")
    assert said["decided at"] == call["at"]
    assert said["log"].startswith(f"entry {call['index']}; its outcome is entry ")
    assert said["to prove it"].startswith(f"agentguard evidence make {call['invocation_id']} -o ")


def options_of(project, given):
    named = {
        "--config": project.folder / "agentguard.toml",
        "--state": project.state,
        "--anchor": project.anchor,
        "--trust": project.folder / "it's trust.json",
    }
    return [word for name in given for word in (name, str(named[name]))]


@pytest.mark.parametrize(
    "given",
    [
        ["--config"],
        ["--state", "--anchor"],
        ["--config", "--state", "--anchor", "--trust"],
    ],
)
def test_the_lines_to_paste_find_the_same_log(reshaped, calls, tmp_path, given):
    assert reshaped.run("trust", "export", "-o", "it's trust.json").returncode == 0
    elsewhere = replace(reshaped, folder=tmp_path)
    options = options_of(reshaped, given)
    shown = elsewhere.run("audit", "show", calls[5]["invocation_id"], *options)
    lines = dict(two for line in shown.stdout.splitlines() if len(two := PAIR.split(line, 1)) == 2)
    prove = shlex.split(lines["to prove it"].strip())
    assert prove[-len(options) :] == options
    assert elsewhere.run(*prove[1:]).returncode == 0
    resolve = lines["resolve it"].strip()
    if "--config" not in given:  # a state alone names no configuration to act by
        assert resolve.endswith(" --note TEXT --config FILE")
        return
    words = shlex.split(resolve.replace("--ran|--not-ran", "--ran"))
    assert words[-2:] == options[:2]
    assert elsewhere.run(*words[1:]).returncode == 0


def test_the_lines_to_paste_are_whole_in_a_narrow_terminal(busy, calls):
    command = ["audit", "show", calls[5]["invocation_id"], "--state", busy.state]
    wide = busy.run(*command).stdout.splitlines()
    narrow = busy.run(*command, env={"COLUMNS": "40"}).stdout.splitlines()
    for name in ("to prove it", "resolve it"):
        (line,) = [line for line in wide if line.startswith(name)]
        assert line in narrow


def test_the_nearest_configuration_needs_no_naming(busy, calls):
    for command in (["audit", "show", calls[5]["invocation_id"]], ["audit", "list", "--in-doubt"]):
        assert "--config" not in busy.run(*command).stdout
    named = ["--config", busy.folder / "agentguard.toml"]
    assert "--config" not in busy.run("audit", "list", "--in-doubt", *named).stdout


def test_every_list_of_calls_in_doubt_says_how_to_act_from_elsewhere(busy, tmp_path):
    elsewhere, toml = replace(busy, folder=tmp_path), busy.folder / "agentguard.toml"
    for command in (["audit", "list", "--in-doubt"], ["audit", "verify"]):
        assert f" --note TEXT --config {toml}\n" in elsewhere.run(*command, "--config", toml).stdout


def test_agents_are_gathered_of_all_guards(busy):
    agents = [json.loads(x) for x in busy.run("agents", "list", "--json").stdout.splitlines()]
    counts = {a["name"]: (a["instances"], a["allow"], a["deny"]) for a in agents}
    assert counts == {"assistant": (2, 3, 1), "reviewer": (1, 1, 1)}


# --- what the administrator adds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "outcome", "said"), [("--ran", "unknown", "it ran"), ("--not-ran", None, "did not run")]
)
def test_a_call_in_doubt_that_a_person_has_settled(told, reshaped, calls, ran, outcome, said):
    doubtful = calls[5]["invocation_id"]
    assert "agentguard resolve" in reshaped.run("audit", "show", doubtful).stdout
    note = "asked \x1b[2J the file server"
    settled = reshaped.run("resolve", doubtful, ran, "--note", note)
    assert settled.returncode == 0, settled.stderr
    story = told(reshaped, doubtful)
    assert story["resolution"]["ran"] is (ran == "--ran")
    assert (story["resolution"]["note"], story["problems"]) == (note, [])
    assert told(reshaped, str(story["resolution"]["index"])) == story
    shown = reshaped.run("audit", "show", doubtful).stdout
    assert "resolved by a person" in shown
    assert said in shown
    assert "\x1b" not in shown
    listed = reshaped.run("audit", "list", "--json", "--kind", "call").stdout.splitlines()
    (row,) = [row for row in map(json.loads, listed) if row["invocation_id"] == doubtful]
    assert row["outcome"] == outcome
    assert said in row["reason"]
    table = reshaped.run("audit", "list").stdout
    assert "resolved" in table
    assert "resolution" in table
    assert "\x1b" not in table
    assert reshaped.run("audit", "list", "--in-doubt", "--json").stdout == ""
    for options in ((), ("--no-signatures",)):
        report = json.loads(reshaped.run("audit", "verify", *options, "--json").stdout)
        assert (report["ok"], report["in_doubt"]) == (True, [])


def test_a_resolution_that_the_admin_key_has_not_signed_settles_no_story(told, reshaped, calls):
    doubtful = calls[5]["invocation_id"]
    assert reshaped.run("resolve", doubtful, "--ran", "--note", "x").returncode == 0
    row = json.loads(reshaped.run("audit", "list", "--kind", "resolution", "--json").stdout)
    with closing(sqlite3.connect(path_in(reshaped.state))) as connection, connection:
        (body,) = connection.execute(
            "SELECT body FROM entry WHERE idx = ?", (row["index"],)
        ).fetchone()
        members = json.loads(body)
        sealed = members["statement"]["signatures"][0]
        sealed["sig"] = ("B" if sealed["sig"][0] == "A" else "A") + sealed["sig"][1:]
        body = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        connection.execute("UPDATE entry SET body = ? WHERE idx = ?", (body, row["index"]))
    story = told(reshaped, doubtful, code=1)
    assert story["resolution"] is None
    assert "the resolution at" in story["problems"][0]


def test_what_was_erased_is_said_to_be(told, reshaped, calls):
    call = calls[1]["invocation_id"]
    assert told(reshaped, call)["arguments"] == {"path": "b.txt"}
    erased = reshaped.run("erase", call, "--yes", "--note", "asked for by \u202eher")
    assert erased.returncode == 0, erased.stderr
    story = told(reshaped, call)
    assert (story["arguments"], story["input"], story["outcome"]["result"]) == (None, None, None)
    assert story["erasure"]["note"] == "asked for by \u202eher"
    assert story["problems"] == []
    shown = reshaped.run("audit", "show", call).stdout
    assert shown.count("by the admin key: asked for by \\u202eher") == 2
    assert "erased on " in shown
    twin = reshaped.run("audit", "show", calls[0]["invocation_id"]).stdout
    assert "erased" not in twin
    assert told(reshaped, calls[0]["invocation_id"])["erasure"] is None


def test_what_was_removed_without_a_word_is_not_said_to_be_erased(told, reshaped, calls):
    call = calls[1]
    with closing(sqlite3.connect(path_in(reshaped.state))) as connection, connection:
        connection.execute("DELETE FROM attachment WHERE idx = ?", (call["index"],))
    assert told(reshaped, call["invocation_id"])["erasure"] is None
    assert (
        "gone, and no erasure is on record; the entry commits to"
        in reshaped.run("audit", "show", call["invocation_id"]).stdout
    )


def test_what_was_redacted_is_said_to_be(told, reshaped):
    with (reshaped.folder / "agentguard.toml").open("a") as file:
        file.write('\n[redact]\nget_file = ["/args/password", "/result"]\n')
    called = reshaped.python("-c", REDACTED)
    assert called.returncode == 0, called.stderr
    (row,) = reshaped.run(
        "audit", "list", "--tool", "get_file", "-n", "1", "--json"
    ).stdout.splitlines()
    story = told(reshaped, json.loads(row)["invocation_id"])
    assert story["problems"] == []
    assert story["arguments"]["path"] == "a.txt"
    shown = reshaped.run("audit", "show", story["invocation_id"]).stdout
    assert shown.count("redacted: {") == 2
    assert "hunter2" not in shown
    assert "secret of" not in shown
