"""``agentguard policy check`` and ``eval``: the rule that a guard follows, before it has to."""

from __future__ import annotations

import json

import pytest

CALL = {"agent": {"type": "assistant"}, "action": "read_file", "args": {"path": "README.md"}}
ALLOW_ALL = "package agent.authz\ndefault allow := true\n"
FAILING = "package agent.authz\nallow if { input.action == 1 / input.zero }\n"


def test_check_says_what_a_policy_is(told):
    shown = told.run("policy", "check")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "sound" in shown.stdout
    assert "authz.rego" in shown.stdout
    assert "data.agent.authz" in shown.stdout
    found = told.json("policy", "check")
    assert list(found) == ["ok", "engine", "policy_sha256", "files", "allows_unknown"]
    assert found["allows_unknown"] is False
    assert found["policy_sha256"] in shown.stdout


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("package agent.authz\nallow if {\n", "policy.rego:"),
        ('package agent.authz\nallow if startwith("a", "b")\n', "startswith"),
        ("package other\nallow := true\n", "other"),
        ('package agent.authz\nallow if { unsafe == "x" }\n', "policy.rego:2"),
    ],
)
def test_check_refuses_what_a_guard_refuses(project, policy, said):
    (project.folder / "policy.rego").write_text(policy)
    result = project.run("policy", "check", "policy.rego")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error [policy.invalid]: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_warns_of_a_policy_that_allows_the_unknown(project):
    (project.folder / "policy.rego").write_text(ALLOW_ALL)
    result = project.run("policy", "check", "policy.rego")
    assert result.returncode == 0
    assert "unknown agent" in result.stderr


@pytest.mark.parametrize(
    ("changes", "code", "decision", "reason"),
    [
        ({}, 0, "allow", ""),
        ({"action": "write_file"}, 1, "deny", "policy.denied"),
        ({"args": {"path": ".env"}}, 1, "deny", "policy.denied"),
    ],
)
def test_eval_decides_as_a_guard_does(told, tmp_path, changes, code, decision, reason):
    (tmp_path / "call.json").write_text(json.dumps(CALL | changes))
    answer = told.json("policy", "eval", tmp_path / "call.json", code=code)
    assert list(answer) == ["decision", "code", "reasons", "policy_sha256"]
    assert (answer["decision"], answer["code"]) == (decision, reason)
    shown = told.run("policy", "eval", "-", input=json.dumps(CALL | changes))
    assert shown.returncode == code
    assert shown.stdout.startswith(decision)


def test_eval_agrees_with_the_log(told):
    """What was recorded as the policy's input gives the recorded decision again."""
    rows = [r for r in told.lines("audit", "list") if r["kind"] == "authorization"]
    for row in (rows[0], rows[3]):
        story = told.json("audit", "show", row["invocation_id"])
        result = told.run("policy", "eval", "-", "--json", input=json.dumps(story["input"]))
        again = json.loads(result.stdout)
        assert (again["decision"], again["reasons"]) == (story["decision"], story["reasons"])
        assert again["policy_sha256"] == story["policy_sha256"]


def test_a_policy_that_fails_denies(project):
    (project.folder / "policy.rego").write_text(FAILING)
    call = json.dumps(CALL | {"zero": 0})
    result = project.run("policy", "eval", "-", "--policy", "policy.rego", "--json", input=call)
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert (answer["decision"], answer["code"]) == ("deny", "policy.error")


def test_what_a_policy_says_does_not_steer_the_screen(project):
    (project.folder / "policy.rego").write_text(
        'package agent.authz\ndeny_reason := "[red]no\\u001b[2J\\u202e\\nallow"\n'
    )
    result = project.run("policy", "eval", "-", "--policy", "policy.rego", input="{}")
    assert result.returncode == 1
    assert r"[red]no\x1b[2J\u202e\nallow" in result.stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "json.malformed"), ("[]", "json.not_object"), ('{"a":1,"a":2}', "json.duplicate_key")],
)
def test_an_input_that_is_no_document(told, text, code):
    result = told.run("policy", "eval", "-", input=text)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error [{code}]: ")


@pytest.mark.parametrize(
    ("command", "returned", "code"),
    [
        (["check", "nowhere.rego"], 2, "config.invalid"),
        (["eval", "nowhere.json", "--policy", "policy.rego"], 2, "config.missing"),
        (["check"], 2, "config.missing"),
        (["check", "policy.rego", "--query", "no query"], 1, "policy.invalid"),
    ],
)
def test_what_is_not_there_is_said(project, command, returned, code):
    (project.folder / "policy.rego").write_text(ALLOW_ALL)
    result = project.run("policy", *command)
    assert (result.returncode, result.stdout) == (returned, "")
    assert result.stderr.startswith(f"error [{code}]: ")
    assert result.stderr.count("\n") == 1


def test_a_policy_that_others_can_write_is_refused(project):
    policy = project.folder / "policy.rego"
    policy.write_text(ALLOW_ALL)
    policy.chmod(0o666)
    result = project.run("policy", "check", "policy.rego")
    assert result.returncode == 2
    assert result.stderr.startswith("error [config.exposed]: ")
