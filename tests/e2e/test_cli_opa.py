"""The command line beside a real OPA: what is checked, what is on record, what is proved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from denial_lines import without_denials

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
CALLS = r"""
import sys
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    @guard.tool(requires=["files:read"])
    def read_file(path: str) -> str:
        return path

    assistant = guard.new_agent("assistant")
    for path in sys.argv[1:]:
        try:
            assistant.call(read_file, path)
        except Denied as denied:
            print(denied.code)
"""


@pytest.fixture
def served(project, opa):
    """A project whose policy is on an OPA, as a bundle of revision r1."""
    assert project.run("init").returncode == 0
    project.allow_unlisted()
    bundle = project.folder / "policies"
    (bundle / ".manifest").write_text(json.dumps({"revision": "r1", "roots": ["agent"]}))
    server = opa("--bundle", bundle)
    toml = project.folder / "agentguard.toml"
    toml.write_text(
        toml.read_text()
        .replace('engine = "rego"', 'engine = "opa"')
        .replace('path = "policies/authz.rego"', f'url = "{server.url}"')
    )
    return project, server


def call(project, *paths: str) -> str:
    ran = project.python("-c", CALLS, *paths)
    assert (ran.returncode, without_denials(ran.stderr)) == (0, "")
    return ran.stdout


def calls_of(project) -> list[dict]:
    listed = project.lines("audit", "list", "--kind", "call")
    return [told for told in listed if told["invocation_id"]]


def test_a_call_on_record_has_the_server_s_decision_id(served):
    project, server = served
    assert call(project, "README.md", ".ssh/id") == "policy.denied\n"
    ids = set()
    for told in calls_of(project):
        shown = project.json("audit", "show", told["invocation_id"])
        assert shown["engine"] == {"name": "opa", "version": "v1"}
        assert shown["policy_sha256"] is None
        assert list(shown["evaluation"]["revisions"].values()) == ["r1"]
        ids.add(shown["evaluation"]["decision_id"])
        drawn = project.run("audit", "show", told["invocation_id"]).stdout
        assert f"decision id {shown['evaluation']['decision_id']}" in drawn
    logged = [json.loads(line) for line in server.log.splitlines() if '"decision_id"' in line]
    assert len(ids) == 2
    assert ids == {line["decision_id"] for line in logged if "input" in line}
    assert project.run("audit", "verify").returncode == 0


def test_its_evidence_verifies_there_and_elsewhere(served):
    project, _server = served
    call(project, "README.md")
    (told,) = calls_of(project)
    trust = project.folder / "trust.json"
    assert project.run("trust", "export", "--output", trust).returncode == 0
    proof = project.folder / "call.evidence"
    made = project.run("evidence", "make", told["invocation_id"], "--output", proof)
    assert made.returncode == 0, made.stderr
    report = project.json("evidence", "verify", proof, "--trust", trust)
    assert report["evaluation"]["decision_id"]
    other = subprocess.run(
        [sys.executable, str(EXAMPLE), str(proof), str(trust)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 0, other.stderr


def test_check_eval_and_doctor_ask_the_server(served):
    project, server = served
    shown = project.run("policy", "check")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("sound: opa v1 data.agent.authz\n")
    assert "unknown to this engine" in shown.stdout
    assert "at r1, decision id " in shown.stdout
    assert list(project.json("policy", "check")["evaluation"]["revisions"].values()) == ["r1"]
    asked = {"agent": {"type": "assistant"}, "action": "read_file", "paths": {"path": "a"}}
    (project.folder / "call.json").write_text(json.dumps(asked))
    assert project.json("policy", "eval", "call.json")["decision"] == "allow"
    checks = {c["check"]: c for c in project.json("doctor")["checks"]}
    assert checks["policy"]["status"] == "ok"
    assert "opa v1 answers: " in checks["policy"]["what"]

    other = project.run("policy", "check", "--query", "data.agent.nothing")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith("error [policy.undefined]: ")
    assert f"{server.url} has no data.agent.nothing: load the policy there" in other.stderr

    server.stop()
    down = project.run("policy", "check")
    assert (down.returncode, down.stdout) == (1, "")
    assert down.stderr.startswith("error [engine.unreachable]: ")
    where = f"start OPA at {server.url}, or correct [policy] url"
    assert where in down.stderr
    assert where in project.run("policy", "eval", "call.json").stdout
    replayed = project.run("policy", "replay")
    assert replayed.returncode == 2
    assert where in " ".join(replayed.stderr.replace("| ", "").split())
    report = project.json("policy", "eval", "call.json", code=1)
    assert (report["decision"], report["code"]) == ("deny", "engine.unreachable")
    checks = {c["check"]: c for c in project.json("doctor", code=1)["checks"]}
    assert checks["policy"]["status"] == "fail"
    assert where in checks["policy"]["what"]
    assert call(project, "README.md") == "engine.unreachable\n"

    server.start()
    assert call(project, "README.md") == ""
    assert project.run("policy", "check").returncode == 0


RULES = "package agent.authz\n\ndefault allow := false\n\n"
CONFLICT = RULES + 'who := "a" if input.action\n\nwho := "b" if input.action\n\nallow if who\n'
SAID = RULES + 'allow := "yes" if input.action\n'
UNMET = RULES + 'obligations contains {"encrypt": "/args"}\n\nallow if input.action == "x"\n'
BLIND = RULES + 'allow if startswith(input.resource, "repo:")\n'
ASKS = RULES + 'approval := {"reason": "who is this?"} if input.action != "read_file"\n'


def pointed_at(project, server):
    assert project.run("init").returncode == 0
    project.allow_unlisted()
    toml = project.folder / "agentguard.toml"
    toml.write_text(
        toml.read_text()
        .replace('engine = "rego"', 'engine = "opa"')
        .replace('path = "policies/authz.rego"', f'url = "{server.url}"')
    )


def test_a_query_that_names_a_rule_denies_each_call_and_is_said(project, opa):
    (project.folder / "authz.rego").write_text(RULES + 'allow if input.action == "read_file"\n')
    server = opa(project.folder / "authz.rego")
    pointed_at(project, server)
    assert project.run("policy", "check").stdout.startswith("sound: ")

    toml = project.folder / "agentguard.toml"
    query = 'query = "data.agent.authz{}"'.format
    toml.write_text(toml.read_text().replace(query(""), query(".allow")))
    checked = project.run("policy", "check")
    assert (checked.returncode, checked.stdout) == (1, "")
    what = " ".join(checked.stderr.replace("| ", "").split()).removeprefix(
        "error [policy.malformed]: "
    )
    assert f"{server.url} was asked for data.agent.authz.allow: the query must name a" in what
    assert "the query must name a package, not a rule: data.agent.authz;" in what
    assert what.endswith(" (it was asked about an unknown tool, without resource and arguments)")
    checks = {c["check"]: c for c in project.json("doctor", code=1)["checks"]}
    assert (checks["policy"]["status"], checks["policy"]["what"]) == ("fail", what)
    assert call(project, "README.md") == "policy.malformed\n"


@pytest.mark.parametrize(
    ("policy", "code", "says"),
    [
        (CONFLICT, "policy.error", "eval_conflict_error"),
        (SAID, "policy.malformed", "correct the policy as the reason says"),
        (UNMET, "obligation.unknown", 'its obligations may only be {"redact": '),
        (BLIND, "", ""),
        (ASKS, "", ""),
    ],
)
def test_an_answer_that_no_policy_means_to_give_is_not_sound(project, opa, policy, code, says):
    (project.folder / "authz.rego").write_text(policy)
    pointed_at(project, opa(project.folder / "authz.rego"))
    told = project.json("policy", "check", code=int(bool(code)))
    assert [problem["code"] for problem in told.get("problems", ())] == ([code] if code else [])
    checks = {c["check"]: c for c in project.json("doctor", code=int(bool(code)))["checks"]}
    assert checks["policy"]["status"] == ("fail" if code else "ok")
    assert says in checks["policy"]["what"]


def test_the_cases_of_a_policy_that_was_moved_are_named(served):
    project, _server = served
    plain = project.run("policy", "test")
    assert (plain.returncode, "nothing ran" in plain.stderr) == (1, True)
    named = project.json("policy", "test", "policies/authz_test.toml")
    assert (named["ok"], named["ran"] > 0) == (True, True)
