"""``agentguard policy replay``: calls on record, put to another policy, and what can't be."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest

CALLS = r"""
from agentguard import ApprovalPending, Denied, Guard

with Guard.open("agentguard.toml") as guard:
    @guard.tool(requires=["files:read"])
    def read_file(path: str) -> str:
        return path

    @guard.tool
    def merge(branch: str) -> str:
        return branch

    @guard.tool(requires=["keys:read"])
    def read_key() -> str: ...

    @guard.tool
    def sign_in(password: str) -> None: ...

    assistant = guard.new_agent("assistant")
    def attempt(tool, *args):
        try:
            assistant.call(tool, *args)
        except Denied:
            pass
        except ApprovalPending as pending:
            guard.approvals.vouch(pending.request, "approve", principal="user:bob")
            assistant.call(tool, *args)

    attempt(read_file, "README.md")
    attempt(read_file, ".ssh/id")
    attempt(read_file, "docs/a.md")
    attempt(merge, "main")
    attempt(read_key)
    attempt(sign_in, "hunter2")
"""
POLICY = """package agent.authz
allow if input.action in {"read_file", "sign_in"}
deny_reasons contains "no hidden files" if {
    is_string(input.args.path)
    startswith(input.args.path, ".")
}
approval := {"reason": "a second look"} if input.action == "merge"
"""
NONE_LEFT = {
    "refused_before": 1,
    "not_the_policy": 0,
    "redacted": 1,
    "handed_out": 0,
    "gone": 0,
    "missing": 0,
    "changed": 0,
    "damaged": 0,
}
"""Of the calls above: ``read_key`` lacks its scope, ``sign_in`` is redacted."""


AGENT = """
[agents.assistant]
authority = "own"
max_scope = ["files:read"]
"""
TABLES = f"""{AGENT}
[approvals]
application = true

[redact]
sign_in = ["/args/password"]
"""


@pytest.fixture(scope="session")
def calls_on_record(founded_with):
    """A project with the calls above. Not to be changed."""
    made = founded_with(TABLES, POLICY)
    called = made.python("-c", CALLS)
    assert called.returncode == 0, called.stderr
    return made


@pytest.fixture
def recorded(calls_on_record, tmp_path):
    return calls_on_record.copy(tmp_path / "recorded")


def other(project, *changes: tuple[str, str]) -> str:
    """Another policy: this one, changed."""
    text = POLICY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (project.folder / "other.rego").write_text(text)
    return "other.rego"


def test_the_same_policy_changes_nothing(recorded):
    report = recorded.json("policy", "replay", "--fail-on-change")
    assert (report["replayed"], report["changed"], report["other_reasons"]) == (4, 0, 0)
    assert report["not_replayed"] == NONE_LEFT
    assert report["calls"] == []
    shown = recorded.run("policy", "replay")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "0 would change of 4 calls replayed" in shown.stdout
    assert "not replayed: 1 call refused before any policy was asked" in shown.stdout
    assert "not replayed: 1 call of which a redacted copy of the input is kept" in shown.stdout


def test_what_would_change_is_told(recorded):
    policy = other(recorded, ('startswith(input.args.path, ".")', 'input.args.path == "docs/a.md"'))
    report = recorded.json("policy", "replay", policy)
    assert (report["replayed"], report["changed"]) == (4, 2)
    denied, allowed = report["calls"]
    assert denied["change"] == allowed["change"] == "decision"
    assert (denied["recorded"]["decision"], denied["replayed"]["decision"]) == ("deny", "allow")
    assert (allowed["recorded"]["decision"], allowed["replayed"]["decision"]) == ("allow", "deny")
    assert allowed["replayed"]["reasons"] == ["no hidden files"]
    assert report["policy_sha256"] != denied["policy_sha256"]
    story = recorded.json("audit", "show", allowed["invocation_id"])
    assert story["arguments"] == {"path": "docs/a.md"}

    assert recorded.run("policy", "replay", policy).returncode == 0
    failing = recorded.run("policy", "replay", policy, "--fail-on-change")
    assert failing.returncode == 1
    assert "2 would change of 4 calls replayed" in failing.stdout
    assert "-> [policy.denied] no hidden files" in failing.stdout
    rows = recorded.lines("audit", "list")
    assert len([row for row in rows if row["kind"] == "call"]) == 6  # nothing was added


def test_other_words_are_no_other_decision(recorded):
    policy = other(recorded, ("no hidden files", "hidden"), ("a second look", "look again"))
    report = recorded.json("policy", "replay", policy, "--fail-on-change")
    assert (report["changed"], report["other_reasons"]) == (0, 2)
    assert {one["change"] for one in report["calls"]} == {"reasons"}


@pytest.mark.parametrize(
    ("changed", "decision", "said"),
    [
        (
            '{"reason": "a second look", "quorum": 2}',
            "approval",
            "1 person (a second look) -> 2 people (a second look)",
        ),
        (
            '{"reason": "a second look", "roles": ["lead"]}',
            "approval",
            "1 person (a second look) -> 1 person in a role of lead (a second look)",
        ),
        ("false", "deny", "a second look -> [policy.denied] no rule of the policy"),
    ],
)
def test_a_call_that_people_approved_was_an_approval(recorded, changed, decision, said):
    policy = other(recorded, ('{"reason": "a second look"}', changed))
    report = recorded.json("policy", "replay", policy, "--tool", "merge")
    (merge,) = report["calls"]
    assert merge["recorded"]["decision"] == "approval"
    assert merge["replayed"]["decision"] == decision
    assert merge["change"] == "decision"
    shown = " ".join(
        recorded.run("policy", "replay", policy, "--tool", "merge").stdout.replace("| ", "").split()
    )
    assert said in shown


def test_one_that_is_denied_once_it_is_approved_is_a_denial(recorded):
    text = 'deny_reasons contains "not by bob" if "user:bob" in input.approval.principals\n'
    policy = other(recorded, ("approval :=", f"{text}approval :="))
    (merge,) = recorded.json("policy", "replay", policy)["calls"]
    assert (merge["replayed"]["decision"], merge["replayed"]["reasons"]) == ("deny", ["not by bob"])


def test_filters_choose_the_calls(recorded):
    deny = other(recorded, ("allow if", "allow if false\nunused if"))
    assert recorded.json("policy", "replay", deny, "--tool", "merge")["changed"] == 0
    assert recorded.json("policy", "replay", deny, "--tool", "read_file")["changed"] == 2
    assert recorded.json("policy", "replay", deny, "--last", "3")["replayed"] == 1
    nobody = recorded.json("policy", "replay", deny, "--tool", "nothing")
    assert nobody["replayed"] == 0
    assert recorded.json(
        "policy", "replay", "--fail-on-change", "--tool", "x", code=1
    ) == nobody | {"policy_sha256": recorded.json("policy", "check")["policy_sha256"]}
    wrong = recorded.run("policy", "replay", "--kind", "outcome")
    assert (wrong.returncode, "leave out --kind" in wrong.stderr) == (2, True)


def test_what_was_erased_or_changed_is_not_replayed(recorded):
    rows = [row for row in recorded.lines("audit", "list") if row["tool"] == "read_file"]
    calls = [row for row in rows if row["kind"] == "call"]
    erased = recorded.run("erase", calls[0]["invocation_id"], "--note", "asked to", "--yes")
    assert erased.returncode == 0, erased.stderr
    report = recorded.json("policy", "replay")
    assert report["not_replayed"] == NONE_LEFT | {"gone": 1}
    assert report["replayed"] == 3

    base = sqlite3.connect(recorded.state / "log.sqlite")
    with base:
        base.execute(
            "UPDATE attachment SET data = CAST(replace(CAST(data AS TEXT), 'docs', 'evil') "
            "AS BLOB) WHERE role = 'input' AND idx = ?",
            [calls[2]["index"]],
        )
    base.close()
    report = recorded.json("policy", "replay", code=1)
    assert report["not_replayed"] == NONE_LEFT | {"gone": 1, "changed": 1}
    shown = recorded.run("policy", "replay")
    assert shown.returncode == 1
    assert "1 call whose input is not what the entry commits to" in shown.stdout
    base = sqlite3.connect(recorded.state / "log.sqlite")
    with base:
        base.execute("DELETE FROM attachment WHERE role = 'input' AND idx = ?", [calls[2]["index"]])
    base.close()
    report = recorded.json("policy", "replay", "--fail-on-change", code=1)
    assert report["not_replayed"] == NONE_LEFT | {"gone": 1, "missing": 1}


JOURNAL = r"""
from agentguard import Guard
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation, run
class Codec:
    def dumps(self, result): return result.encode()
    def loads(self, data): return data.decode()
with Guard.open("agentguard.toml") as guard:
    merge = guard.tool(name="merge")(lambda branch: branch)
    assistant = guard.new_agent("assistant")
    site = CallSite("c1", thread="t", turn="m1")
    for _ in range(2):
        inv = Invocation.bind(merge.spec, lambda: Arguments.of({"branch": "main"}), site)
        try:
            run(assistant, inv, lambda: "done", CallOptions(codec=Codec()))
        except Exception as pending:
            guard.approvals.vouch(pending.request, "approve", principal="user:bob")
            run(assistant, inv, lambda: "done", CallOptions(codec=Codec()))
"""


def test_a_call_that_the_journal_answered_is_passed_over(recorded):
    made = recorded.python("-c", JOURNAL)
    assert made.returncode == 0, made.stderr
    report = recorded.json("policy", "replay", "--fail-on-change")
    assert report["not_replayed"] == NONE_LEFT | {"handed_out": 1}
    assert (report["replayed"], report["changed"]) == (5, 0)


@pytest.fixture(scope="session")
def observed_calls(founded_with):
    """A project with the calls above, of which the policy was only observed. Not to be changed."""
    made = founded_with(AGENT, POLICY)
    toml = made.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace("[policy]\n", '[policy]\nmode = "observe"\n'))
    assert made.python("-c", CALLS).returncode == 0
    return made


@pytest.fixture
def observed(observed_calls, tmp_path):
    return observed_calls.copy(tmp_path / "observed")


def test_an_observed_call_that_would_not_run_any_more_is_a_change(observed):
    report = observed.json("policy", "replay", "--fail-on-change", code=1)
    assert (report["replayed"], report["changed"], report["other_reasons"]) == (5, 2, 0)
    hidden, merge = report["calls"]
    assert (hidden["enforced"], hidden["change"]) == (False, "decision")
    assert (hidden["recorded"]["decision"], hidden["replayed"]["decision"]) == ("deny", "deny")
    assert (merge["recorded"]["decision"], merge["replayed"]["decision"]) == (
        "approval",
        "approval",
    )
    assert (merge["enforced"], merge["change"]) == (False, "decision")

    shown = observed.run("policy", "replay", "--fail-on-change")
    assert shown.returncode == 1
    assert "2 would change of 5 calls replayed" in shown.stdout
    table = " ".join(shown.stdout.replace("| ", "").split())
    assert "read_file would deny deny it ran: the policy was only observed -> [policy." in table
    assert "merge would ask approval it ran: the policy was only observed -> " in table
    toml = observed.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace('mode = "observe"\n', ""))
    assert observed.json("policy", "replay")["changed"] == 2  # the line is out, the calls are not


def test_an_observed_call_that_would_run_is_none(observed):
    lenient = other(
        observed,
        ('{"read_file", "sign_in"}', '{"read_file", "sign_in", "merge"}'),
        ("approval := {", 'unused := {"never": true} if false\nunasked := {'),
        ("deny_reasons contains", "ignored contains"),
    )
    report = observed.json("policy", "replay", lenient, "--fail-on-change")
    assert (report["replayed"], report["changed"], report["calls"]) == (5, 0, [])
    strict = other(observed, ('startswith(input.args.path, ".")', 'input.args.path == "docs/a.md"'))
    (listed, _merge) = observed.json("policy", "replay", strict)["calls"]
    assert (listed["recorded"]["decision"], listed["replayed"]["decision"]) == ("allow", "deny")


def test_other_engines_are_asked_as_well(recorded, opa):
    server = opa(recorded.folder / "policies" / "authz.rego")
    other_package = recorded.run("policy", "replay", server.url, "--query", "data.other")
    assert other_package.returncode == 2
    assert "or name another package with --query" in " ".join(
        other_package.stderr.replace("| ", "").split()
    )
    report = recorded.json("policy", "replay", server.url, "--fail-on-change")
    assert (report["engine"]["name"], report["replayed"], report["changed"]) == ("opa", 4, 0)
    (recorded.folder / "other.cedar").write_text("permit(principal, action, resource);")
    cedar = recorded.json("policy", "replay", "other.cedar")
    assert (cedar["engine"]["name"], cedar["changed"]) == ("cedar", 2)

    server.stop()
    down = recorded.run("policy", "replay", server.url)
    assert (down.returncode, down.stdout) == (2, "")
    assert down.stderr.startswith("error [engine.unreachable]: ")
    assert f"start OPA at {server.url}, or name the URL of another" in " ".join(
        down.stderr.replace("| ", "").split()
    )
    assert "[policy]" not in down.stderr  # no configuration names it
    password = recorded.run("policy", "replay", server.url.replace("//", "//bob:s3cret@"))
    assert password.returncode == 2
    assert "s3cret" not in password.stderr


def test_a_policy_that_can_not_be_used_replays_nothing(recorded):
    (recorded.folder / "other.rego").write_text("package agent.authz\nallow if {")
    ran = recorded.run("policy", "replay", "other.rego")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [policy.invalid]: ")
    assert json.loads(recorded.run("policy", "replay", "--json").stdout)["replayed"] == 4


def test_the_page_names_each_reason_why_a_call_is_not_replayed():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli" / "policy.md").read_text(
        "utf-8"
    )
    listed = page.partition("counts the calls that were not replayed, by reason (")[2]
    assert re.findall(r"`(\w+)`", listed.partition(")")[0]) == list(NONE_LEFT)
