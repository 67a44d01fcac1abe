"""``agentguard trace``: the calls of one run as a tree, from the log alone.

A lead hands work on to a writer, once without a tracer and once inside a trace; the writer's second
note waits for a person. What stands in the tree is what the log has, and no more.
"""

from __future__ import annotations

import re
import sqlite3

import pytest

TOML = """
[agents.lead]
type = "assistant"
max_scope = ["notes:read", "notes:publish"]
[agents.writer]
type = "assistant"
max_scope = ["notes:read", "notes:publish"]
[agents.clerk]
type = "assistant"
authority = "own"
max_scope = ["notes:read"]

[tools.publish]
resource = "note:{name}"

[approvals]
application = true
"""
POLICY = """package agent.authz

default allow := false

allow if input.action in {"ask_writer", "read_note"}

allow if input.action == "publish"

approval := {"reason": "publishing needs a person", "allow_self": true} if {
	input.action == "publish"
	input.args.name != "draft"
}

deny_reasons contains "secret notes stay here" if input.args.name == "secret"
"""
CALLS = """
import sys
from contextlib import nullcontext, suppress
from opentelemetry import trace
from agentguard import ApprovalPending, Denied, Guard

mode = sys.argv[1]
with Guard.open("agentguard.toml") as guard:
    lead, writer = guard.new_agent("lead"), guard.new_agent("writer")
    clerk = guard.new_agent("clerk")

    @guard.tool
    def read_note(name: str) -> str:
        if name == "lost":
            raise FileNotFoundError(name)
        return "the note"

    @guard.tool
    def publish(name: str) -> str:
        return "published " + name

    @guard.tool
    def ask_writer(name: str) -> str:
        with suppress(Denied):
            writer.call(read_note, "secret")
        return writer.call(publish, name)

    traced = nullcontext()
    if mode == "traced":
        span = trace.SpanContext(0xABCDEF << 104, 7, is_remote=False)
        traced = trace.use_span(trace.NonRecordingSpan(span))
    if mode == "alone":
        clerk.call(read_note, "plan")
        with suppress(FileNotFoundError):
            clerk.call(read_note, "lost")
    else:
        scope = ["notes:publish"]
        with traced, guard.delegate("user:alice", scope=scope, via="service:desk", task_id="t-1"):
            lead.call(read_note, "plan")
            lead.call(ask_writer, "draft")
            try:
                writer.call(publish, "report")
            except ApprovalPending as pending:
                if mode == "traced":
                    guard.approvals.vouch(pending.request, "approve", principal="user:bob")
                    writer.call(publish, "report")
"""


@pytest.fixture(scope="module")
def runs(founded_with):
    """A project with three runs in its log. Not to be changed."""
    made = founded_with(TOML, POLICY)
    for mode in ("alone", "traced", "untraced"):
        called = made.python("-c", CALLS, mode)
        assert called.returncode == 0, called.stderr
    return made


def test_the_newest_run_is_a_tree_without_any_tracer(runs):
    shown = runs.run("trace", "--last").stdout
    head, _, rest = shown.partition("at ")
    assert re.match(r"run   \| the delegation [0-9a-f]{32}\nfor   \| user:alice\n", head)
    assert "task  | t-1\n" in head
    assert "calls | 4: 3 allow, 1 deny; 1 request for an approval\n" in head
    lines = rest.splitlines()
    order = [re.search(r"(agent:\w+|read_note|ask_writer|publish)", line) for line in lines[1:8]]
    names = [found[1] for found in order if found]
    assert names[:4] == ["agent:lead", "read_note", "ask_writer", "agent:writer"]
    (lead, writer, asking) = (line for line in lines if "for user:alice" in line)
    assert asking.strip().endswith("for user:alice > service:desk")  # a request names it, too
    assert lead.strip().endswith("for user:alice > service:desk")
    assert re.search(r"for user:alice > service:desk > agent:lead:\S{4}$", writer)
    inner = next(line for line in lines if "note:draft" in line)
    outer = next(line for line in lines if "ask_writer" in line)
    assert inner.index("publish") > outer.index("ask_writer")  # inside it
    assert re.search(r" \d+\.\d ms +allow +ok +publish", inner)
    assert "    | policy.denied: secret notes stay here" in lines
    assert any(re.search(r"approval +asked +publish +note:report$", line) for line in lines)
    assert "The log holds guarded calls and requests for approvals alone" in shown
    first = runs.json("trace", "--last")["calls"][0]["invocation_id"]
    assert shown.endswith(f"  agentguard audit show {first}\n")


def test_a_trace_is_found_by_the_beginning_of_its_id_with_the_answer_of_a_person(runs):
    whole = f"{0xABCDEF << 104:032x}"
    shown = runs.run("trace", whole).stdout
    assert shown.startswith(f"run   | the trace {whole}\n")
    assert shown.endswith(f"  agentguard audit show --trace {whole}\n")
    assert runs.run("trace", "abcdef00").stdout == shown
    assert re.search(r"approval +answered +publish +note:report\n", shown)
    assert re.search(r"allow +ok +publish +note:report\n    \| approved by user:bob at 20", shown)
    told = runs.json("trace", "abcdef00")
    assert (told["kind"], told["id"]) == ("trace", whole)
    assert "calls of models" in told["not_in_log"]
    read, ask, asked, published = told["calls"]
    assert [one["tool"] for one in (read, ask, asked, published)] == [
        "read_note",
        "ask_writer",
        "publish",
        "publish",
    ]
    assert [one["tool"] for one in ask["inside"]] == ["read_note", "publish"]
    denied, draft = ask["inside"]
    assert (denied["decision"], denied["code"]) == ("deny", "policy.denied")
    assert denied["seconds"] is None
    assert draft["seconds"] >= 0
    assert draft["delegation"][0] == "service:desk"
    assert (asked["kind"], asked["request_id"]) == (
        "request",
        published["approvals"][0]["request_id"],
    )
    assert published["approvals"][0]["approver"] == "user:bob"
    assert ask["span_id"] == "0000000000000007"


def test_a_call_names_its_run_and_an_agent_that_acts_by_itself_has_one(runs):
    listed = runs.lines("audit", "list", "--kind", "call")
    own = [row for row in listed if row["principal"] == "agent:clerk"]
    for row in own:
        told = runs.json("trace", row["invocation_id"][:10])
        assert (told["kind"], told["id"]) == ("instance", row["agent"])
        assert [c["invocation_id"] for c in told["calls"]] == [r["invocation_id"] for r in own]
    shown = runs.run("trace", own[0]["invocation_id"]).stdout
    assert re.match(r"run   \| the calls of agent:clerk:\S{4}\n", shown)
    assert "    | builtins.FileNotFoundError\n" in shown
    inner = next(row for row in listed if row["resource"] == "note:draft")
    assert runs.json("trace", inner["invocation_id"])["id"] == f"{0xABCDEF << 104:032x}"


def test_what_names_no_run_is_said(runs, project):
    for name in ("abcdef0123", "zzzzzzzz", "99999"):
        refused = runs.run("trace", name)
        assert refused.returncode == 2
        assert f"the log has no call and no trace {name}" in refused.stderr
    assert "is no call and no request" in runs.run("trace", "0").stderr
    for arguments in ([], ["0", "--last"]):
        assert "name a trace or a call" in runs.run("trace", *arguments).stderr
    assert project.run("init").returncode == 0
    assert "the log has no call yet" in project.run("trace", "--last").stderr


@pytest.mark.parametrize("width", ["20", "80"])
def test_a_tree_fits_a_narrow_terminal(runs, width):
    shown = runs.run("trace", "--last", env={"COLUMNS": width}).stdout
    wide = [line for line in shown.split("\n") if len(line) > int(width)]
    assert [line for line in wide if "agentguard audit show " not in line] == []
    assert "ask_writer" in shown


def test_the_command_takes_no_lock_and_no_passphrase(runs):
    begun = """
from agentguard import Guard
import subprocess, sys
with Guard.open("agentguard.toml") as guard:  # it has the passphrase and the log open
    guard.new_agent("clerk")
    command = [sys.executable, "-m", "agentguard.cli", "trace", "--last"]
    home = {"HOME": sys.argv[1], "PATH": ""}
    print(subprocess.run(command, env=home, capture_output=True, text=True).stdout)
"""
    (other := runs.home.parent / "other_home").mkdir(exist_ok=True)  # without the passphrase's file
    ran = runs.python("-c", begun, str(other))
    assert "ask_writer" in ran.stdout, ran.stderr


def test_hostile_names_are_written_out_and_the_tree_keeps_its_shape(told):
    rows = told.lines("audit", "list", "--kind", "call")
    evil = next(row for row in rows if row["tool"].startswith("evil"))
    shown = told.run("trace", evil["invocation_id"]).stdout
    assert r"evil[red]\x1b[31m\u202etool" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


DEEP = """
import sys
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    clerk = guard.new_agent("clerk")

    @guard.tool
    def read_note(name: str) -> str:
        return clerk.call(read_note, name[1:]) if name else ""

    clerk.call(read_note, "x" * 70)
"""


def test_calls_inside_calls_are_cut_off_at_a_depth_that_nobody_needs(runs, tmp_path):
    copy = runs.copy(tmp_path / "copy")
    ran = copy.python("-c", DEEP)
    assert ran.returncode == 0, ran.stderr
    told, deepest = copy.json("trace", "--last"), []

    def walk(nodes, depth):
        for node in nodes:
            deepest.append(depth)
            walk(node["inside"], depth + 1)

    walk(told["calls"], 0)
    assert (len(deepest), max(deepest)) == (71, 64)
    assert copy.run("trace", "--last").returncode == 0


def test_a_log_whose_columns_were_edited_shows_no_call_that_no_entry_has(runs, tmp_path):
    copy = runs.copy(tmp_path / "copy")
    before = copy.json("trace", "abcdef00")
    with sqlite3.connect(copy.state / "log.sqlite") as connection:
        connection.execute("UPDATE entry SET tool = 'shutdown' WHERE tool = 'read_note'")
    connection.close()
    assert copy.json("trace", "abcdef00") == before
